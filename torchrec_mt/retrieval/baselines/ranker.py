"""What every rival is, and what they share: the anchor left out, ties, popularity behind what a rival knows.

A ranker takes anchor rows and k and returns ranked rows_BK, best first, -1 padded. Where anchors and candidates are
the same entity, rankers leave the anchor itself out. Rivals count in the task's own training pairs, also where the
model takes the task's anchors from another task (`trained_as`): each is at its best on the question that is asked.
Legend: B anchors, N candidates of the catalogue, K cut-off.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import csr_array

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.keys import NO_KEY, best_keys, keys_of, scores_and_rows, stable_topk

Ranker = Callable[[np.ndarray, int], np.ndarray]
_SCORES_AT_ONCE = 1 << 24  # 64 MiB of float32 scores


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


class Popularity:
    """The task's candidates by training pairs, the most frequent first, ties by row."""

    def __init__(self, dataset: PreparedDataset, task: str) -> None:
        self.row_N = np.argsort(-dataset.frequencies(task), kind="stable")
        self.place_N = np.empty(len(self.row_N), np.int64)
        self.place_N[self.row_N] = np.arange(len(self.row_N))
        self._same = same_entity(dataset, task)

    def behind(self, own_BK: np.ndarray, anchor_B: np.ndarray, k: int) -> np.ndarray:
        """A rival's own rows_BK (-1 for none), then the most frequent of the others: k of each, no anchor itself."""
        popular = self.row_N[: own_BK.shape[1] + k + 1]  # deep enough to fill up after the own ones are left out
        place_BK = np.where(own_BK >= 0, self.place_N[own_BK], len(popular))
        row, column = np.nonzero(place_BK < len(popular))
        known = np.zeros((len(anchor_B), len(popular)), bool)
        known[row, place_BK[row, column]] = True
        ranked = np.concatenate([own_BK, np.tile(popular, (len(anchor_B), 1))], axis=1)
        keep = np.concatenate([own_BK >= 0, ~known], axis=1)
        return without_self(left_justified(ranked, keep), anchor_B, k, same_entity=self._same)


def by_scores(dataset: PreparedDataset, task: str, scores: Callable[[np.ndarray], np.ndarray]) -> Ranker:
    """The ranker of a score: best first, ties by row, then popularity.

    Args:
        scores: takes anchor rows and gives score_BN (float32) over the whole catalogue; -inf where the rival has
            nothing to say of a candidate.
    """
    popular, same = Popularity(dataset, task), same_entity(dataset, task)
    candidates = len(popular.row_N)

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        score_BN = torch.from_numpy(scores(anchor_B))
        if same:
            score_BN[torch.arange(len(anchor_B)), torch.from_numpy(anchor_B)] = -torch.inf
        values_BK, rows_BK = stable_topk(score_BN, min(k, candidates))
        return popular.behind(rows_BK.masked_fill_(values_BK == -torch.inf, -1).numpy(), anchor_B, k)

    return in_blocks(rank, candidates)


def in_blocks(rank: Ranker, candidates: int) -> Ranker:
    """The same ranker, called with so few anchors at a time that the scores of all their candidates fit."""
    block = max(1, _SCORES_AT_ONCE // max(1, candidates))

    def blocks(anchor_B: np.ndarray, k: int) -> np.ndarray:
        parts = [rank(anchor_B[start : start + block], k) for start in range(0, len(anchor_B), block)]
        return np.concatenate([np.zeros((0, k), np.int64), *parts])

    return blocks


def best_of_sparse(score_BN: csr_array, anchor_B: np.ndarray, k: int, *, same_entity: bool) -> np.ndarray:
    """Candidates with a score above 0 (as float32), best first, ties by row, no anchor itself: rows_BK, -1 padded."""
    length_B = np.diff(score_BN.indptr)
    at = np.arange(score_BN.nnz) - np.repeat(score_BN.indptr[:-1].astype(np.int64), length_B)
    row, item = np.repeat(np.arange(len(length_B)), length_B), score_BN.indices.astype(np.int64)
    score = score_BN.data.astype(np.float32)  # sums that only rounding tells apart are equal again
    keep = score > 0
    if same_entity:
        keep &= item != anchor_B[row]
    key = keys_of(torch.from_numpy(score), torch.from_numpy(np.where(keep, item, -1)))
    key_BW = torch.full((len(length_B), max(k, length_B.max(initial=0))), NO_KEY)
    key_BW[torch.from_numpy(row), torch.from_numpy(at)] = key
    return scores_and_rows(best_keys(key_BW, k))[1].numpy()


def whole_catalogue(score_BM: np.ndarray, item_M: np.ndarray, candidates: int) -> np.ndarray:
    """Scores of some candidates as score_BN of all, -inf for the others."""
    score_BN = np.full((len(score_BM), candidates), -np.inf, score_BM.dtype)
    score_BN[:, item_M] = score_BM
    return score_BN
