"""What one system's lists are worth, anchor by anchor: ranked and judged by chunks of anchors, then forgotten.

Memory holds the lists of one chunk; of the others only a number per anchor and measure.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from torchrec_mt.retrieval.baselines import Ranker
from torchrec_mt.retrieval.lists import covered, cross_category, diversity, novelty, popularity_lift
from torchrec_mt.retrieval.metrics import depth_of, ranking_metrics
from torchrec_mt.retrieval.questions import Products, Questions
from torchrec_mt.retrieval.slices import target_parts

LIST_K = 10
COVERED_K = (10, 100)
LISTS = tuple(f"{name}@{LIST_K}" for name in ("novelty", "popularity_lift", "diversity", "cross_category"))
"""Measures of lists that every anchor has a value of."""
MAIN = 4
"""So many metrics, the first ones asked for, are the main ones: compared, and told of every slice."""

_CHUNK, _PLACES_AT_ONCE = 2048, 1 << 22


@dataclass(frozen=True)
class Part:
    """A target slice: which anchors have such an answer, and their values of the main metrics in this order."""

    asked_B: np.ndarray
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Measured:
    """One system on one task.

    Args:
        values: value_B of each metric. lists: value_B of each measure of `LISTS`, NaN where a list has none.
        coverage: share of the catalogue in the first k places of all lists, by name. parts: target slices, by slicing
            and label.
    """

    values: dict[str, np.ndarray]
    lists: dict[str, np.ndarray]
    coverage: dict[str, float]
    parts: dict[str, dict[str, Part]]


def main_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics that are compared and told of every slice."""
    return tuple(metrics[:MAIN])


def measure(
    questions: Questions,
    ranker: Ranker,
    metrics: Sequence[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    chunk: int = _CHUNK,
) -> Measured:
    """Ranks for all anchors and judges the lists.

    Args:
        metrics: names, see `metrics`. progress: told done and total of anchors. chunk: anchors ranked at a time.
    """
    total, relevant, main = len(questions.anchor_B), questions.relevant, main_metrics(metrics)
    keeps = {name: dict(target_parts(slicing, relevant)) for name, slicing in questions.slicings.target.items()}
    asked = {
        name: {label: relevant.where(keep).count_B > 0 for label, keep in labels.items()}
        for name, labels in keeps.items()
    }
    values = _empty(metrics)
    lists, parts = _empty(LISTS), {name: {label: _empty(main) for label in labels} for name, labels in keeps.items()}
    stands = {k: np.zeros(questions.num_products, bool) for k in COVERED_K}
    for low, high, ranked_BK in _ranked(questions, ranker, metrics, chunk):
        here = relevant.rows(low, high)
        _append(values, ranking_metrics(ranked_BK, here, metrics))
        _append(lists, list_measures(ranked_BK, questions.products, slice(low, high)))
        for k, stands_N in stands.items():
            stands_N |= covered(ranked_BK, k, questions.num_products)
        span = slice(relevant.offsets[low], relevant.offsets[high])
        for name, labels in keeps.items():
            for label, keep in labels.items():
                some_B = asked[name][label][low:high]
                right = here.where(keep[span]).of_anchors(some_B)
                _append(parts[name][label], ranking_metrics(ranked_BK[some_B], right, main))
        if progress:
            progress(high, total)
    return Measured(
        values=_joined(values),
        lists=_joined(lists),
        coverage={f"coverage@{k}": float(stands_N.mean()) for k, stands_N in stands.items()},
        parts={
            name: {label: Part(asked[name][label], _joined(found)) for label, found in labels.items()}
            for name, labels in parts.items()
        },
    )


def mean_metrics(
    questions: Questions, ranker: Ranker, metrics: Sequence[str], *, chunk: int = _CHUNK
) -> dict[str, float]:
    """Means of the metrics and nothing else; 0 without anchors."""
    values = _empty(metrics)
    for low, high, ranked_BK in _ranked(questions, ranker, metrics, chunk):
        _append(values, ranking_metrics(ranked_BK, questions.relevant.rows(low, high), metrics))
    return {name: float(value_B.mean()) if len(value_B) else 0.0 for name, value_B in _joined(values).items()}


def list_measures(ranked_BK: np.ndarray, products: Products, rows: slice) -> dict[str, np.ndarray]:
    """The measures of `LISTS`.

    Args:
        rows: which of the anchors the lists are for.
    """
    none_B = np.full(len(ranked_BK), np.nan)
    category_N, own_B = products.category_N, products.anchor_category_B
    values = (
        novelty(ranked_BK, LIST_K, products.count_N),
        popularity_lift(ranked_BK, LIST_K, products.count_N),
        none_B if category_N is None else diversity(ranked_BK, LIST_K, category_N),
        none_B if category_N is None or own_B is None else cross_category(ranked_BK, LIST_K, category_N, own_B[rows]),
    )
    return dict(zip(LISTS, values, strict=True))


def _ranked(
    questions: Questions, ranker: Ranker, metrics: Sequence[str], chunk: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The lists, chunk by chunk; no deeper than there are products."""
    depth = min(max(depth_of(metrics), *COVERED_K), questions.num_products)
    step = max(1, min(chunk, _PLACES_AT_ONCE // depth))
    for low in range(0, len(questions.anchor_B), step):
        high = min(low + step, len(questions.anchor_B))
        yield low, high, ranker(questions.anchor_B[low:high], depth)


def _empty(names: Sequence[str]) -> dict[str, list[np.ndarray]]:
    return {name: [np.zeros(0)] for name in names}


def _append(into: dict[str, list[np.ndarray]], values: dict[str, np.ndarray]) -> None:
    for name, value_B in values.items():
        into[name].append(value_B)


def _joined(values: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate(parts) for name, parts in values.items()}
