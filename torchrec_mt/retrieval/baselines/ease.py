"""EASE, the shallow linear autoencoder: among the strongest of what ids alone can do, by one matrix inverse."""

import numpy as np
from scipy.linalg import cho_factor
from scipy.linalg.lapack import spotri
from scipy.sparse import csr_array

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.interactions import interactions
from torchrec_mt.retrieval.baselines.ranker import Ranker, by_scores, whole_catalogue

_BLOCK = 1024
MAX_ITEMS = 20_000
"""Most items of the inverse: 1.6 GB in float32 while the task is judged, and about a minute on two cores."""


def ease(dataset: PreparedDataset, task: str, *, penalty: float = 100.0, max_items: int = MAX_ITEMS) -> Ranker:
    """Items by x B, x the anchor's history and B the best linear map of histories to themselves without a diagonal.

    Steck, "Embarrassingly Shallow Autoencoders for Sparse Data" (WWW 2019), equation 8: with P the inverse of
    X'X + penalty I, B is -P divided by the diagonal of P column by column, 0 on the diagonal.

    X is the interaction matrix with 1 for every count, the anchor in its own row where it is an item. Of N items only
    those with training pairs take part, of more than `max_items` the most frequent ones; the others follow by
    popularity. An anchor with none of them in its history gets popularity. B has no diagonal: where anchors are no
    items, a candidate that the anchor had in training is found only through its other candidates. Scores are rounded
    to 1e-6, ten times what float32 leaves uncertain: equal items stay equal, and are ranked by row.
    """
    count_AN = interactions(dataset, task, own_item=True)
    frequency_N = np.bincount(count_AN.indices, minlength=count_AN.shape[1])
    item_M = np.sort(np.argsort(-frequency_N, kind="stable")[: min(max_items, np.count_nonzero(frequency_N))])
    history_AM = csr_array(count_AN[:, item_M] > 0, dtype=np.float32)
    weight_MM = _weights(history_AM, penalty)
    is_known_A = np.diff(history_AM.indptr) > 0

    def scores(anchor_B: np.ndarray) -> np.ndarray:
        score_BM = (history_AM[anchor_B] @ weight_MM).round(6)
        score_BM[~is_known_A[anchor_B]] = -np.inf
        return whole_catalogue(score_BM, item_M, count_AN.shape[1])

    return by_scores(dataset, task, scores)


def _weights(history_AM: csr_array, penalty: float) -> np.ndarray:
    """B in float32, by Cholesky in place: an inverse in float64 would take twice the memory and the time."""
    weight_MM = np.asfortranarray((history_AM.T @ history_AM).toarray())
    if not weight_MM.size:
        return weight_MM
    weight_MM[np.diag_indices_from(weight_MM)] += penalty
    factor_MM, lower = cho_factor(weight_MM, lower=True, overwrite_a=True, check_finite=False)
    inverse_MM, failed = spotri(factor_MM, lower=lower, overwrite_c=True)
    assert not failed, "a Cholesky factor has no 0 on its diagonal"
    # LAPACK fills the lower triangle alone.
    for start in range(0, len(inverse_MM), _BLOCK):
        stop = start + _BLOCK
        square = np.tril(inverse_MM[start:stop, start:stop])
        inverse_MM[start:stop, start:stop] = square + np.tril(square, -1).T
        inverse_MM[start:stop, stop:] = inverse_MM[stop:, start:stop].T
    inverse_MM /= -inverse_MM.diagonal().copy()
    np.fill_diagonal(inverse_MM, 0.0)
    return inverse_MM
