"""What one system's lists are worth, anchor by anchor: ranked and judged by chunks of anchors, then forgotten.

Memory holds the lists of one chunk; of the others only a number per anchor and measure.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from torchrec_mt.retrieval.baselines.ranker import Ranker
from torchrec_mt.retrieval.lists import covered, cross_category, diversity, novelty, popularity_lift
from torchrec_mt.retrieval.metrics import Relevant, depth_of, ranking_metrics
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


def asked_depth(metrics: Sequence[str]) -> int:
    """How deep a ranker must rank for the metrics and the measures of lists."""
    return max(depth_of(metrics), *COVERED_K)


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
    values, lists, targets = _empty(metrics), _empty(LISTS), list(_targets(questions, main))
    stands = {k: np.zeros(questions.num_products, bool) for k in COVERED_K}
    for low, high, ranked_BK in _ranked(questions.anchor_B, questions.num_products, ranker, metrics, chunk):
        here = relevant.rows(low, high)
        _append(values, ranking_metrics(ranked_BK, here, metrics))
        _append(lists, list_measures(ranked_BK, questions.products, slice(low, high)))
        for k, stands_N in stands.items():
            stands_N |= covered(ranked_BK, k, questions.num_products)
        items = slice(relevant.offsets[low], relevant.offsets[high])
        for target in targets:
            asked_B = target.asked_B[low:high]
            right = here.where(target.keep[items]).of_anchors(asked_B)
            _append(target.values, ranking_metrics(ranked_BK[asked_B], right, main))
        if progress:
            progress(high, total)
    parts: dict[str, dict[str, Part]] = {}
    for target in targets:
        parts.setdefault(target.slicing, {})[target.label] = Part(target.asked_B, _joined(target.values))
    coverage = {f"coverage@{k}": float(stands_N.mean()) for k, stands_N in stands.items()}
    return Measured(_joined(values), _joined(lists), coverage, parts)


@dataclass(frozen=True)
class _Target:
    """A target slice that is being measured: which relevant items are kept, which anchors have one, values so far."""

    slicing: str
    label: str
    keep: np.ndarray
    asked_B: np.ndarray
    values: dict[str, list[np.ndarray]]


def _targets(questions: Questions, main: Sequence[str]) -> Iterator[_Target]:
    for name, slicing in questions.slicings.target.items():
        for label, keep in target_parts(slicing, questions.relevant):
            yield _Target(name, label, keep, questions.relevant.where(keep).count_B > 0, _empty(main))


def mean_metrics(
    anchor_B: np.ndarray,
    relevant: Relevant,
    ranker: Ranker,
    metrics: Sequence[str],
    *,
    num_products: int,
    chunk: int = _CHUNK,
) -> dict[str, float]:
    """Means of the metrics over the anchors that have a right answer, and nothing else; 0 where none has."""
    positive_B = relevant.count_B > 0
    anchor_B, relevant = anchor_B[positive_B], relevant.of_anchors(positive_B)
    values = _empty(metrics)
    for low, high, ranked_BK in _ranked(anchor_B, num_products, ranker, metrics, chunk):
        _append(values, ranking_metrics(ranked_BK, relevant.rows(low, high), metrics))
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
    anchor_B: np.ndarray, num_products: int, ranker: Ranker, metrics: Sequence[str], chunk: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """The lists, chunk by chunk; no deeper than there are products."""
    depth = min(asked_depth(metrics), num_products)
    step = max(1, min(chunk, _PLACES_AT_ONCE // depth))
    for low in range(0, len(anchor_B), step):
        high = min(low + step, len(anchor_B))
        yield low, high, ranker(anchor_B[low:high], depth)


def _empty(names: Sequence[str]) -> dict[str, list[np.ndarray]]:
    return {name: [np.zeros(0)] for name in names}


def _append(into: dict[str, list[np.ndarray]], values: dict[str, np.ndarray]) -> None:
    for name, value_B in values.items():
        into[name].append(value_B)


def _joined(values: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate(parts) for name, parts in values.items()}
