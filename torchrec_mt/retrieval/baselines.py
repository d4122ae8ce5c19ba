"""Simple rivals on the same anchors: popularity, co-occurrence (BM25: bm25.py); and the oracle, which is the ceiling.

A ranker takes anchor rows and k and returns ranked rows_BK, best first, -1 padded. Where anchors and candidates are
the same entity, rankers leave the anchor itself out. Rivals count in the task's own training pairs, also where the
model takes the task's anchors from another task (`trained_as`): each is at its best on the question that is asked.
"""

from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import PreparedDataset, Split

Ranker = Callable[[np.ndarray, int], np.ndarray]


def without_self(ranked_BK: np.ndarray, anchor_B: np.ndarray, k: int, *, same_entity: bool) -> np.ndarray:
    """The first k of each row, the anchor itself left out."""
    if same_entity:
        ranked_BK = left_justified(ranked_BK, ranked_BK != anchor_B[:, None])
    if ranked_BK.shape[1] < k:
        ranked_BK = np.pad(ranked_BK, ((0, 0), (0, k - ranked_BK.shape[1])), constant_values=-1)
    return ranked_BK[:, :k]


def left_justified(ranked_BK: np.ndarray, keep_BK: np.ndarray) -> np.ndarray:
    """Kept entries moved left in their order, -1 behind them."""
    order = np.argsort(~keep_BK, axis=1, kind="stable")
    return np.take_along_axis(np.where(keep_BK, ranked_BK, -1), order, axis=1)


def same_entity(dataset: PreparedDataset, task: str) -> bool:
    """Whether the task's anchors and candidates are the same entity."""
    info = dataset.manifest.tasks[task]
    return info.anchor == info.candidate


def _popular_first(dataset: PreparedDataset, task: str) -> np.ndarray:
    return np.argsort(-dataset.frequencies(task), kind="stable")


def popularity(dataset: PreparedDataset, task: str) -> Ranker:
    """The most frequent candidates of the task's training pairs, the same for every anchor."""
    popular_N, same = _popular_first(dataset, task), same_entity(dataset, task)

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        return without_self(np.tile(popular_N[: k + 1], (len(anchor_B), 1)), anchor_B, k, same_entity=same)

    return rank


def co_occurrence(dataset: PreparedDataset, task: str) -> Ranker:
    """The anchor's own candidates in the task's training pairs by count, then by popularity; then popularity."""
    pairs, same = dataset.pairs(task, "train"), same_entity(dataset, task)
    popular_N = _popular_first(dataset, task)
    place_N = np.empty(len(popular_N), np.int64)
    place_N[popular_N] = np.arange(len(popular_N))
    order = np.lexsort((place_N[pairs["candidate"]], -pairs["count"], pairs["anchor"]))
    candidates = pairs["candidate"][order]
    anchors = dataset.manifest.entities[dataset.manifest.tasks[task].anchor].count
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs["anchor"], minlength=anchors))])

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        start_B, width = offsets[anchor_B], k + 1
        own_B = np.minimum(offsets[anchor_B + 1] - start_B, width)
        at_BK = np.minimum(start_B[:, None] + np.arange(width), max(len(candidates) - 1, 0))
        own_BK = np.where(np.arange(width) < own_B[:, None], candidates[at_BK] if len(candidates) else -1, -1)
        # Popularity behind them, deep enough to fill up after the own ones are left out.
        popular = popular_N[: 2 * width]
        own_place_BK = np.where(own_BK >= 0, place_N[own_BK], len(popular))
        row, column = np.nonzero(own_place_BK < len(popular))
        known = np.zeros((len(anchor_B), len(popular)), bool)
        known[row, own_place_BK[row, column]] = True
        ranked = np.concatenate([own_BK, np.tile(popular, (len(anchor_B), 1))], axis=1)
        keep = np.concatenate([own_BK >= 0, ~known], axis=1)
        return without_self(left_justified(ranked, keep), anchor_B, k, same_entity=same)

    return rank


def oracle(dataset: PreparedDataset, task: str, split: Split) -> Ranker:
    """The best possible ranking: by the truth where the data knows it, else the split's own pairs, best grade first.

    The truth is that of the test period (its catalogue, its preferences), so only the test split is ranked by it: on
    the validation split the oracle ranks the split's own pairs, whatever the data knows.
    """
    info, same = dataset.manifest.tasks[task], same_entity(dataset, task)
    if split == "test" and dataset.truth_path(task).exists():
        truth = pq.read_table(dataset.truth_path(task))
        anchor, candidate, score = (truth[name].to_numpy() for name in ("anchor", "candidate", "score"))
    else:
        pairs = dataset.pairs(task, split)
        anchor, candidate, score = pairs["anchor"], pairs["candidate"], pairs["grade"]
    order = np.lexsort((candidate, -score, anchor))
    candidate = candidate[order]
    count = dataset.manifest.entities[info.anchor].count
    offsets = np.concatenate([[0], np.cumsum(np.bincount(anchor, minlength=count))])

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        width = k + 1
        at_BK = offsets[anchor_B][:, None] + np.arange(width)
        inside = at_BK < offsets[anchor_B + 1][:, None]
        ranked = np.where(inside, candidate[np.minimum(at_BK, max(len(candidate) - 1, 0))], -1)
        return without_self(ranked, anchor_B, k, same_entity=same)

    return rank
