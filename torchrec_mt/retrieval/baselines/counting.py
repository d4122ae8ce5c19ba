"""Rivals that count training pairs: popularity, co-occurrence in three weightings; and chance, which is the floor."""

import numpy as np

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.ranker import Popularity, Ranker, same_entity, without_self


def chance(dataset: PreparedDataset, task: str) -> Ranker:
    """Candidates drawn at random without replacement; an anchor's draw hangs on its row and k alone."""
    candidates, same = len(dataset.frequencies(task)), same_entity(dataset, task)

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        count = min(k + 1, candidates)
        # A generator per anchor, in a loop: the draw must not hang on which anchors are ranked together.
        drawn = [np.random.default_rng(row).choice(candidates, count, replace=False) for row in anchor_B.tolist()]
        ranked = np.array(drawn, np.int64).reshape(len(anchor_B), count)
        return without_self(ranked, anchor_B, k, same_entity=same)

    return rank


def popularity(dataset: PreparedDataset, task: str) -> Ranker:
    """The most frequent candidates of the task's training pairs, the same for every anchor."""
    popular, same = Popularity(dataset, task), same_entity(dataset, task)

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        return without_self(np.tile(popular.row_N[: k + 1], (len(anchor_B), 1)), anchor_B, k, same_entity=same)

    return rank


def co_occurrence(dataset: PreparedDataset, task: str, *, discount: float = 0.0) -> Ranker:
    """The anchor's own candidates in the task's training pairs by score, then by popularity; then popularity.

    The score of anchor a and candidate c is n(a, c) / n(c)^discount, n the counts of the task's training pairs. With 0
    it is the plain count. What depends on the anchor alone changes no order, so that 0.5 ranks by the cosine
    n(a, c) / sqrt(n(a) n(c)), and 1 by lift, n(a, c) n / (n(a) n(c)).
    """
    pairs, popular = dataset.pairs(task, "train"), Popularity(dataset, task)
    total_N = np.bincount(pairs["candidate"], weights=pairs["count"], minlength=len(popular.row_N))
    score = pairs["count"] / total_N[pairs["candidate"]] ** discount
    order = np.lexsort((popular.place_N[pairs["candidate"]], -score, pairs["anchor"]))
    candidates = np.append(pairs["candidate"][order], -1)
    anchors = dataset.manifest.entities[dataset.manifest.tasks[task].anchor].count
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs["anchor"], minlength=anchors))])

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        start_B, width = offsets[anchor_B], k + 1
        own_B = offsets[anchor_B + 1] - start_B
        at_BK = np.minimum(start_B[:, None] + np.arange(width), len(candidates) - 1)
        own_BK = np.where(np.arange(width) < own_B[:, None], candidates[at_BK], -1)
        return popular.behind(own_BK, anchor_B, k)

    return rank
