"""Rivals that go on from an anchor's own candidates by sparse products: the walk of two hops, and item-kNN."""

import numpy as np
from scipy.sparse import csr_array

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.interactions import interactions, scaled
from torchrec_mt.retrieval.baselines.ranker import (
    Popularity,
    Ranker,
    best_of_sparse,
    in_blocks,
    same_entity,
)


def two_hops(dataset: PreparedDataset, task: str) -> Ranker:
    """Where a random walk anchor -> candidate -> anchor -> candidate ends, steps by count; then popularity.

    The two hops lead to the anchors that share candidates with this one, itself among them; what they lead to is
    ranked by the chance to arrive: P3 of Cooper et al., "Random Walks in Recommender Systems" (WWW 2014). Pairs keep
    their direction, so that a directed task leads to candidates alone.
    """
    count_AN = interactions(dataset, task)
    forth_AN = scaled(count_AN, rows=count_AN.sum(axis=1))
    back_NA = csr_array(scaled(count_AN, columns=count_AN.sum(axis=0)).T)
    return _by_products(dataset, task, forth_AN, back_NA, forth_AN)


def item_knn(dataset: PreparedDataset, task: str) -> Ranker:
    """Items by the sum of their cosines with the items of the anchor's history, times their counts; then popularity.

    Sarwar et al., "Item-based collaborative filtering" (WWW 2001). The cosine is that of two columns of the
    interaction matrix; the anchor is in its own row where it is an item. All neighbours count, and an item is its own
    nearest one: candidates known in training stay candidates.
    """
    count_AN = interactions(dataset, task, own_item=True)
    unit_AN = scaled(count_AN, columns=np.sqrt((count_AN * count_AN).sum(axis=0)))
    return _by_products(dataset, task, count_AN, csr_array(unit_AN.T), unit_AN)


def _by_products(dataset: PreparedDataset, task: str, first: csr_array, second: csr_array, third: csr_array) -> Ranker:
    """Ranks by the anchor's row of first x second x third, where that is above 0; then popularity."""
    popular, same = Popularity(dataset, task), same_entity(dataset, task)

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        score_BN = csr_array((first[anchor_B] @ second) @ third)
        return popular.behind(best_of_sparse(score_BN, anchor_B, k, same_entity=same), anchor_B, k)

    # What lies between two products may be of every anchor there is: a popular candidate leads to many.
    return in_blocks(rank, max(second.shape[1], len(popular.row_N)))
