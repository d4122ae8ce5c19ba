"""Ranking metrics per anchor: pure functions of ranked rows and relevant items, no loop over anchors.

R relevant items of an anchor, ranks from 1, the first K of a list are looked at:

    recall@K     relevant ones found / R
    precision@K  relevant ones found / K, also where the list is shorter
    hit_rate@K   1 where at least one was found, else 0
    ndcg@K       gain / log2(1 + rank) summed, over the largest sum any order reaches (Jarvelin & Kekalainen, TOIS 2002;
                 linear gain, as trec_eval has it)
    mrr@K        1 / rank of the first relevant one, 0 beyond K
    map@K        precision at the rank of each relevant one found, summed, / R (trec_eval's map_cut: R, not min(R, K))

What holds for all of them:
    The order is given: ties were broken by whoever ranked.
    -1 is an empty place, and so is everything behind the list's end: nothing is found there.
    A repeated item counts at its first place. The repeat keeps its own place and is worth nothing there.
    An anchor without relevant items has no value: NaN. Callers leave it out and say how many they left out.

Legend: B anchors, K ranks, H hits.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

Kind = Literal["recall", "precision", "hit_rate", "ndcg", "mrr", "map"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_PLACES_AT_ONCE = 1 << 20  # 8 MiB of int64


class Metric(NamedTuple):
    """A metric's name taken apart: "recall@10" is ("recall", 10)."""

    kind: Kind
    k: int


def parse_metric(name: str) -> Metric:
    """Takes a metric's name apart.

    Raises:
        ValueError: no such metric, or a cut-off that is not 1 to 999,999.
    """
    match = re.fullmatch(r"([a-z_]+)@([1-9][0-9]{0,5})", name)
    if match:
        for kind in KINDS:
            if match[1] == kind:
                return Metric(kind, int(match[2]))
    allowed = f"{' | '.join(KINDS)}, then @ and a cut-off from 1 to 999999, such as 'recall@10'"
    raise ValueError(f"{name!r} is no metric: write {allowed}")


def depth_of(names: Iterable[str]) -> int:
    """Ranks that the named metrics look at; 0 for none."""
    return max((parse_metric(name).k for name in names), default=0)


METRICS = ("recall@10", "recall@100", "ndcg@10", "mrr@10", "precision@10", "hit_rate@10", "map@10")
"""What a model is judged by where nothing else is asked for."""
DEPTH = depth_of(METRICS)


@dataclass(frozen=True)
class Relevant:
    """Relevant items per anchor in compressed-row form: those of anchor b are items[offsets[b]:offsets[b + 1]].

    Args:
        offsets: int64 [B + 1], from 0. items: int64, ascending within an anchor, none twice. gains: float, positive.
    """

    offsets: np.ndarray
    items: np.ndarray
    gains: np.ndarray

    @property
    def count_B(self) -> np.ndarray:
        """Relevant items per anchor."""
        return np.diff(self.offsets)

    def rows(self, low: int, high: int) -> "Relevant":
        """Those of the anchors from `low` to before `high`."""
        first, last = self.offsets[low], self.offsets[high]
        return Relevant(self.offsets[low : high + 1] - first, self.items[first:last], self.gains[first:last])

    def where(self, keep: np.ndarray) -> "Relevant":
        """Those that are kept, of all anchors.

        Args:
            keep: bool, of each relevant item.
        """
        offsets = np.concatenate([[0], np.cumsum(keep)])[self.offsets]
        return Relevant(offsets, self.items[keep], self.gains[keep])

    def of_anchors(self, keep_B: np.ndarray) -> "Relevant":
        """Those of the anchors that are kept, which are numbered anew."""
        keep = np.repeat(keep_B, self.count_B)
        offsets = np.concatenate([[0], np.cumsum(self.count_B[keep_B])])
        return Relevant(offsets, self.items[keep], self.gains[keep])


@dataclass(frozen=True)
class Hits:
    """Where relevant items stand in the lists, by anchor, then by rank; an item of a list is hit once at most.

    Args:
        anchor_H: row of the list. rank_H: from 0. gain_H: of the item there.
    """

    anchor_H: np.ndarray
    rank_H: np.ndarray
    gain_H: np.ndarray


def row_blocks(ranked_BK: np.ndarray) -> Iterator[slice]:
    """Rows of an array in blocks of about a million entries: what is computed from a block stays small."""
    step = max(1, _PLACES_AT_ONCE // max(1, ranked_BK.shape[1]))
    for low in range(0, len(ranked_BK), step):
        yield slice(low, min(low + step, len(ranked_BK)))


def hits_of(ranked_BK: np.ndarray, relevant: Relevant) -> Hits:
    """Finds the relevant items in the lists.

    Args:
        ranked_BK: item rows (integers), best first, -1 padded.

    Raises:
        ValueError: not one list per anchor.
    """
    if ranked_BK.ndim != 2 or len(ranked_BK) != len(relevant.offsets) - 1:
        raise ValueError(f"lists {list(ranked_BK.shape)} do not fit: one row for each of {len(relevant.offsets) - 1}")
    parts = [np.zeros((2, 0), np.int64)]
    for rows in row_blocks(ranked_BK):
        parts.append(_hits_of_block(ranked_BK[rows], relevant, rows.start))
    place_H, found_H = np.concatenate(parts, axis=1)
    anchor_H, rank_H = np.divmod(place_H, max(1, ranked_BK.shape[1]))
    return Hits(anchor_H, rank_H, relevant.gains[found_H])


def _hits_of_block(ranked_BK: np.ndarray, relevant: Relevant, start: int) -> np.ndarray:
    """Place in the (flat) lists and position among the relevant items of each hit, [2, H]."""
    offsets = relevant.offsets[start : start + len(ranked_BK) + 1]
    items = relevant.items[offsets[0] : offsets[-1]]
    if not len(items) or not ranked_BK.size:
        return np.zeros((2, 0), np.int64)
    width = int(max(items.max(), ranked_BK.max())) + 2
    first_B = np.arange(len(ranked_BK)) * width + 1  # an anchor's keys start here, that of -1 just before
    key = np.repeat(first_B, np.diff(offsets)) + items
    assert (key[1:] > key[:-1]).all(), "relevant items must be ascending within an anchor"
    wanted = (first_B[:, None] + ranked_BK).ravel()
    position = np.searchsorted(key, wanted)
    position[position == len(key)] = 0
    place_H = np.flatnonzero(key[position] == wanted)
    found_H, once = np.unique(position[place_H], return_index=True)
    order = np.argsort(once)
    return np.stack([place_H[once[order]] + start * ranked_BK.shape[1], found_H[order] + offsets[0]])


def gains_of(ranked_BK: np.ndarray, relevant: Relevant) -> np.ndarray:
    """Gain at each place of the lists, 0 where nothing relevant stands (or stands again): gain_BK."""
    hits = hits_of(ranked_BK, relevant)
    gain_BK = np.zeros(ranked_BK.shape)
    gain_BK[hits.anchor_H, hits.rank_H] = hits.gain_H
    return gain_BK


def ranking_metrics(ranked_BK: np.ndarray, relevant: Relevant, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Metrics per anchor, by name; NaN for an anchor without relevant items.

    Args:
        ranked_BK: item rows, best first, -1 padded; K at least `depth_of(names)`, or the whole catalogue.
        names: such as "recall@10", see the top of this file.

    Raises:
        ValueError: no such metric, or not one list per anchor.
    """
    metrics = {name: parse_metric(name) for name in names}
    depth = max((metric.k for metric in metrics.values()), default=0)
    hits = hits_of(ranked_BK[:, :depth], relevant)
    count_B = np.where(relevant.count_B > 0, relevant.count_B, np.nan)
    # Of each hit: how many hits of its anchor stand up to it.
    ordinal_H = 1 + np.arange(len(hits.anchor_H)) - np.searchsorted(hits.anchor_H, hits.anchor_H)
    return {name: _metric(metric, hits, ordinal_H, count_B, relevant) for name, metric in metrics.items()}


def _metric(metric: Metric, hits: Hits, ordinal_H: np.ndarray, count_B: np.ndarray, relevant: Relevant) -> np.ndarray:
    inside_H = hits.rank_H < metric.k
    anchor_H, rank_H, ordinal_H = hits.anchor_H[inside_H], hits.rank_H[inside_H], ordinal_H[inside_H]

    def summed(value_H: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(anchor_H, weights=value_H, minlength=len(count_B))

    match metric.kind:
        case "recall":
            return summed() / count_B
        case "precision":
            return np.where(np.isnan(count_B), np.nan, summed() / metric.k)
        case "hit_rate":
            return np.where(np.isnan(count_B), np.nan, summed() > 0)
        case "ndcg":
            return summed(hits.gain_H[inside_H] / np.log2(rank_H + 2)) / ideal_dcg(relevant, metric.k)
        case "mrr":
            return np.where(np.isnan(count_B), np.nan, summed(np.where(ordinal_H == 1, 1 / (rank_H + 1), 0.0)))
        case "map":
            return summed(ordinal_H / (rank_H + 1)) / count_B


def ideal_dcg(relevant: Relevant, k: int) -> np.ndarray:
    """The largest discounted gain of k places, per anchor; NaN without relevant items."""
    count_B = relevant.count_B
    owner = np.repeat(np.arange(len(count_B)), count_B)
    order = np.lexsort((-relevant.gains, owner))
    rank = np.arange(len(owner)) - relevant.offsets[owner]
    kept = rank < k
    discounted = relevant.gains[order][kept] / np.log2(rank[kept] + 2)
    ideal_B = np.bincount(owner[kept], weights=discounted, minlength=len(count_B))
    return np.where(count_B > 0, ideal_B, np.nan)
