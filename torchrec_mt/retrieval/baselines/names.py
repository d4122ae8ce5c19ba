"""Which rivals there are. Apart from the rivals themselves, for the config."""

from typing import Literal, get_args

from torchrec_mt.errors import UserError

Baseline = Literal[
    "random",
    "popularity",
    "bm25_text",
    "bm25",
    "co_occurrence",
    "co_occurrence_cosine",
    "co_occurrence_lift",
    "two_hops",
    "item_knn",
    "ease",
    "als",
    "bpr",
    "fusion",
    "oracle",
]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
DEFAULTS: tuple[Baseline, ...] = ("popularity", "bm25", "co_occurrence", "two_hops", "oracle")
"""Cheap and telling: a few seconds for 20,000 products."""


def chosen(text: str) -> list[str]:
    """Names with commas between them, or the word "all".

    Raises:
        UserError: an unknown name.
    """
    if text == "all":
        return list(BASELINES)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in BASELINES:
            raise UserError(f"--baselines {text}: unknown '{name}', choose from {', '.join(BASELINES)}, or 'all'")
    return list(dict.fromkeys(names))
