"""Systems on a judged pool: pairs of grade 0 say what is irrelevant, so the other candidates are unjudged, not wrong.

The evaluator asks it beside its own metrics; `judged.py` has the measures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchrec_mt.data.dataset import PreparedDataset, Split
from torchrec_mt.retrieval.baselines.ranker import Ranker, same_entity
from torchrec_mt.retrieval.judged import Judged, judged_metrics, random_expectation

RANDOM = "random_order"
"""The row of a random order of the catalogue: where it is high, a measure tells little."""
_PLACES_AT_ONCE = 1 << 20  # 8 MiB of int64; rankers hold a few times as much
_PLACES = 1 << 27
"""1 GiB of int64: of a larger pool's rankings only the start is looked at."""


@dataclass(frozen=True)
class PoolResult:
    """Measures of each system on a judged pool, "random_order" first.

    Args:
        num_anchors: anchors that have something relevant; the means are over them. num_judged: their judged pairs.
    """

    num_anchors: int
    num_judged: int
    systems: dict[str, dict[str, float]]


def pool_depth(dataset: PreparedDataset, task: str, split: Split, anchors: int) -> int:
    """How deep rankers must rank for `judge_pool`: the catalogue, if memory allows; 0 where there is no pool."""
    if not (dataset.pairs(task, split)["grade"] <= 0).any():
        return 0
    return _depth(dataset, task, anchors)


def _depth(dataset: PreparedDataset, task: str, anchors: int) -> int:
    return min(dataset.manifest.entities[dataset.manifest.tasks[task].candidate].count, _PLACES // max(1, anchors))


def judge_pool(
    dataset: PreparedDataset, task: str, split: Split, anchor_B: np.ndarray, rankers: Mapping[str, Ranker]
) -> PoolResult | None:
    """Judges every ranker by rankings `pool_depth` deep; None where the split has no pair of grade 0.

    Args:
        anchor_B: the anchors to judge on, ascending.
    """
    judged = judged_pairs(anchor_B, dataset.pairs(task, split))
    has_value_B = judged.relevant.count_B > 0
    if not (judged.grades <= 0).any() or not has_value_B.any():
        return None
    depth = _depth(dataset, task, len(anchor_B))
    catalogue = dataset.manifest.entities[dataset.manifest.tasks[task].candidate].count
    reachable = catalogue - same_entity(dataset, task)
    values = {RANDOM: random_expectation(judged, reachable)}
    values |= {name: _measured(ranker, anchor_B, judged, depth) for name, ranker in rankers.items()}
    return PoolResult(
        int(has_value_B.sum()),
        int(np.diff(judged.offsets)[has_value_B].sum()),
        {
            system: {name: float(value_B[has_value_B].mean()) for name, value_B in measures.items()}
            for system, measures in values.items()
        },
    )


def judged_pairs(anchor_B: np.ndarray, pairs: Mapping[str, np.ndarray]) -> Judged:
    """All pairs of the given anchors (ascending), whatever their grade."""
    mine = np.isin(pairs["anchor"], anchor_B)
    owner = np.searchsorted(anchor_B, pairs["anchor"][mine])
    items, grades = pairs["candidate"][mine], pairs["grade"][mine]
    order = np.lexsort((items, owner))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(anchor_B)))])
    return Judged(offsets, items[order], grades[order].astype(np.float64))


def _measured(ranker: Ranker, anchor_B: np.ndarray, judged: Judged, depth: int) -> dict[str, np.ndarray]:
    """A few anchors at a time: lists are long."""
    step = max(1, _PLACES_AT_ONCE // depth)
    parts = [
        judged_metrics(ranker(anchor_B[start : start + step], depth), judged.rows(start, start + step))
        for start in range(0, len(anchor_B), step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
