"""Ranking metrics per anchor: pure functions of ranked rows and relevant items, no loop over anchors.

Recall@K: share of the relevant that stand in the first K. MRR@K: 1 / rank of the first relevant one, 0 beyond K.
NDCG@K: gain / log2(1 + rank) summed over the first K, over the largest sum any order reaches (Jarvelin & Kekalainen,
TOIS 2002; linear gain).
"""

from dataclasses import dataclass

import numpy as np

METRICS = ("recall@10", "recall@100", "ndcg@10", "mrr@10")
DEPTH = 100
"""Ranks that the metrics look at."""


@dataclass(frozen=True)
class Relevant:
    """Relevant items per anchor in compressed-row form: those of anchor b are items[offsets[b]:offsets[b + 1]].

    Args:
        offsets: int64 [B + 1]. items: int64, ascending within an anchor. gains: float, positive.
    """

    offsets: np.ndarray
    items: np.ndarray
    gains: np.ndarray


def gains_of(ranked_BK: np.ndarray, relevant: Relevant) -> np.ndarray:
    """Gain of each ranked item, 0 where it is not relevant or padding (-1): gain_BK."""
    anchors = len(relevant.offsets) - 1
    owner = np.repeat(np.arange(anchors), np.diff(relevant.offsets))
    width = int(max(relevant.items.max(initial=0), ranked_BK.max(initial=0))) + 1
    key = owner * width + relevant.items
    wanted = np.arange(anchors)[:, None] * width + ranked_BK
    position = np.minimum(np.searchsorted(key, wanted), max(len(key) - 1, 0))
    hit = (key[position] == wanted) & (ranked_BK >= 0) if len(key) else np.zeros(ranked_BK.shape, bool)
    return np.where(hit, relevant.gains[position] if len(key) else 0.0, 0.0)


def ranking_metrics(ranked_BK: np.ndarray, relevant: Relevant) -> dict[str, np.ndarray]:
    """Every metric of METRICS per anchor.

    Args:
        ranked_BK: item rows, best first, -1 padded, K >= 100 or the whole catalogue.
    """
    gain_BK = gains_of(ranked_BK, relevant)
    hit_BK = gain_BK > 0
    count_B = np.maximum(np.diff(relevant.offsets), 1)
    first_B = hit_BK[:, :10].argmax(axis=1)
    return {
        "recall@10": hit_BK[:, :10].sum(axis=1) / count_B,
        "recall@100": hit_BK[:, :100].sum(axis=1) / count_B,
        "ndcg@10": _dcg(gain_BK[:, :10]) / np.maximum(_ideal_dcg(relevant, 10), 1e-12),
        "mrr@10": np.where(hit_BK[:, :10].any(axis=1), 1.0 / (1 + first_B), 0.0),
    }


def _dcg(gain_BK: np.ndarray) -> np.ndarray:
    return (gain_BK / np.log2(np.arange(gain_BK.shape[1]) + 2)).sum(axis=1)


def _ideal_dcg(relevant: Relevant, k: int) -> np.ndarray:
    lengths = np.diff(relevant.offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((-relevant.gains, owner))
    rank = np.arange(len(owner)) - relevant.offsets[owner]
    kept = rank < k
    discounted = relevant.gains[order][kept] / np.log2(rank[kept] + 2)
    return np.bincount(owner[kept], weights=discounted, minlength=len(lengths))
