"""Measures on judged pools: what people graded of an anchor's candidates, 0 for irrelevant; most were never looked at.

    condensed_ndcg@K  NDCG@K of the list without its unjudged items (Sakai, SIGIR 2007, "Alternatives to bpref")
    ndcg@K            NDCG@K of the list as it is: unjudged counts as 0, so a lower bound
    bpref             mean over the R relevant items of 1 - min(n, R) / min(N, R), where n of the N irrelevant ones
                      stand before it; 0 where it is not in the list (Buckley & Voorhees, SIGIR 2004; as trec_eval)
    unjudged@K        items among the first K that nobody judged / K, also where the list is shorter

Relevant is what has a grade above 0, and the grade is the gain (linear), as in `metrics`. Also as there: the order is
given, -1 is an empty place, a repeated item counts at its first place (nobody judged the repeat), and an anchor
without relevant items has no value: NaN. What is judged but not in the list was not found: give whole rankings.

Legend: B anchors, K ranks, H judged items found, J judged items.
"""

from dataclasses import dataclass

import numpy as np

from torchrec_mt.retrieval.metrics import Hits, Relevant, hits_of, ideal_dcg, ranking_metrics

K = 10


@dataclass(frozen=True)
class Judged:
    """Judged items per anchor in compressed-row form: those of anchor b are items[offsets[b]:offsets[b + 1]].

    Args:
        offsets: int64 [B + 1], from 0. items: int64, ascending within an anchor, none twice. grades: float, from 0 on.
    """

    offsets: np.ndarray
    items: np.ndarray
    grades: np.ndarray

    @property
    def relevant(self) -> Relevant:
        """The items of a grade above 0."""
        kept = self.grades > 0
        before = np.concatenate([[0], np.cumsum(kept)])
        return Relevant(before[self.offsets], self.items[kept], self.grades[kept])

    def rows(self, start: int, stop: int) -> "Judged":
        """The judged items of some anchors in a row."""
        offsets = self.offsets[start : stop + 1]
        first, last = offsets[0], offsets[-1]
        return Judged(offsets - first, self.items[first:last], self.grades[first:last])


def judged_names(k: int = K) -> tuple[str, ...]:
    """Names of the measures, in their order."""
    return (f"condensed_ndcg@{k}", f"ndcg@{k}", "bpref", f"unjudged@{k}")


def judged_metrics(ranked_BK: np.ndarray, judged: Judged, k: int = K) -> dict[str, np.ndarray]:
    """Measures per anchor, value_B by name (see the top of this file); NaN for an anchor without relevant items.

    Args:
        ranked_BK: item rows, best first, -1 padded: whole rankings, for what is judged and deeper counts as not found.
        k: cut-off of all measures but bpref.

    Raises:
        ValueError: not one list per anchor.
    """
    relevant, ndcg = judged.relevant, f"ndcg@{k}"
    hits = hits_of(ranked_BK, Relevant(judged.offsets, judged.items, judged.grades))
    known_B = np.bincount(hits.anchor_H[hits.rank_H < k], minlength=len(ranked_BK))
    unjudged_B = ((ranked_BK[:, :k] >= 0).sum(axis=1) - known_B) / k
    values = (
        ranking_metrics(_condensed(ranked_BK, hits, k), relevant, [ndcg])[ndcg],
        ranking_metrics(ranked_BK[:, :k], relevant, [ndcg])[ndcg],
        _bpref(hits, judged),
        np.where(relevant.count_B > 0, unjudged_B, np.nan),
    )
    return dict(zip(judged_names(k), values, strict=True))


def random_expectation(judged: Judged, catalogue: int, k: int = K) -> dict[str, np.ndarray]:
    """What a random order of the whole catalogue is expected to reach, exactly: value_B by name, NaN as above.

    Each of n judged items stands at each place of the condensed list with probability 1 / n, so its DCG is expected to
    be the mean grade times the sum of the discounts of min(k, n) places; that of the full list likewise. The number of
    irrelevant items before a relevant one is uniform on 0 ... N, so bpref is (min(N, R) + 1) / (2 (N + 1)), and 1 where
    N is 0.

    Args:
        catalogue: items that are ranked, the judged ones among them.
    """
    relevant = judged.relevant
    count_B, relevant_B = np.diff(judged.offsets), relevant.count_B
    irrelevant_B = count_B - relevant_B
    anchor_J = np.repeat(np.arange(len(count_B)), count_B)
    total_B = np.bincount(anchor_J, weights=judged.grades, minlength=len(count_B))
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    share_B = total_B / ideal_dcg(relevant, k)
    bpref_B = (np.minimum(irrelevant_B, relevant_B) + 1) / (2 * (irrelevant_B + 1))
    values = (
        share_B / np.maximum(count_B, 1) * discounts[np.minimum(count_B, k)],
        share_B / catalogue * discounts[min(catalogue, k)],
        np.where(irrelevant_B > 0, bpref_B, 1.0),
        (1 - count_B / catalogue) * min(catalogue, k) / k,
    )
    return {name: np.where(relevant_B > 0, value, np.nan) for name, value in zip(judged_names(k), values, strict=True)}


def _condensed(ranked_BK: np.ndarray, hits: Hits, k: int) -> np.ndarray:
    """The first k judged items of each list, in its order, -1 padded."""
    place_H = np.arange(len(hits.anchor_H)) - np.searchsorted(hits.anchor_H, hits.anchor_H)
    anchor_H, rank_H, place_H = (part[place_H < k] for part in (hits.anchor_H, hits.rank_H, place_H))
    condensed_BK = np.full((len(ranked_BK), k), -1, np.int64)
    condensed_BK[anchor_H, place_H] = ranked_BK[anchor_H, rank_H]
    return condensed_BK


def _bpref(hits: Hits, judged: Judged) -> np.ndarray:
    count_B = judged.relevant.count_B
    irrelevant_B = np.diff(judged.offsets) - count_B
    wrong_H = hits.gain_H <= 0
    until_H = np.concatenate([[0], np.cumsum(wrong_H)])
    before_H = until_H[1:] - until_H[np.searchsorted(hits.anchor_H, hits.anchor_H)]  # of the anchor's own list
    anchor_H, before_H = hits.anchor_H[~wrong_H], before_H[~wrong_H]
    most_B = np.maximum(np.minimum(irrelevant_B, count_B), 1)  # no irrelevant one stands before any where there is none
    score_H = 1 - np.minimum(before_H, count_B[anchor_H]) / most_B[anchor_H]
    total_B = np.bincount(anchor_H, weights=score_H, minlength=len(count_B))
    return total_B / np.where(count_B > 0, count_B, np.nan)
