"""Reciprocal rank fusion: what two rankings find together, without any score to compare."""

from collections.abc import Sequence

import numpy as np

from torchrec_mt.retrieval.baselines.ranker import Ranker

CONSTANT = 60
"""The k of the paper, which chose it once for all."""


DEPTH = 3
"""Each ranker is asked for so many times k."""


def fusion(rankers: Sequence[Ranker], *, depth: int = DEPTH) -> Ranker:
    """Candidates by the sum of 1 / (60 + rank) over the rankings that hold them, ties by row.

    Cormack, Clarke & Buettcher, "Reciprocal Rank Fusion Outperforms Condorcet" (SIGIR 2009).

    Args:
        depth: each ranker is asked for depth x k.
    """

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        rows_BR = np.concatenate([ranker(anchor_B, depth * k) for ranker in rankers], axis=1)
        share_R = np.tile(1 / (CONSTANT + 1 + np.arange(depth * k)), len(rankers))
        owner, column = np.nonzero(rows_BR >= 0)
        width = int(rows_BR.max(initial=0)) + 1
        pair, place = np.unique(owner * width + rows_BR[owner, column], return_inverse=True)
        score = np.bincount(place, weights=share_R[column], minlength=len(pair))
        owner, row = pair // width, pair % width
        order = np.lexsort((row, -score, owner))
        first_B = np.searchsorted(owner, np.arange(len(anchor_B)))
        ranked_BK = np.full((len(anchor_B), k), -1, np.int64)
        at = np.arange(len(order)) - first_B[owner]
        ranked_BK[owner[at < k], at[at < k]] = row[order][at < k]
        return ranked_BK

    return rank
