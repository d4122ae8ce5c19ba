"""Matrix factorisation of a task's training pairs by `implicit`: ALS and BPR, vectors from ids alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.counting import popularity
from torchrec_mt.retrieval.baselines.interactions import interactions
from torchrec_mt.retrieval.baselines.ranker import Ranker, by_scores, whole_catalogue

FACTORS = 64
"""The width of a tower's vector by default."""


def als(dataset: PreparedDataset, task: str, *, factors: int = FACTORS) -> Ranker:
    """Alternating least squares: Hu, Koren & Volinsky (ICDM 2008), 64 factors, 15 rounds, confidence 40 x count."""
    from implicit.cpu.als import AlternatingLeastSquares

    return _factorised(
        dataset, task, lambda: AlternatingLeastSquares(factors=factors, alpha=40.0, num_threads=1, random_state=0)
    )


def bpr(dataset: PreparedDataset, task: str) -> Ranker:
    """Bayesian personalised ranking by SGD: Rendle et al. (UAI 2009), 64 factors and a bias, 100 epochs, rate .05."""
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    # More threads write into each other's vectors: another result every time.
    return _factorised(
        dataset,
        task,
        lambda: BayesianPersonalizedRanking(factors=FACTORS, learning_rate=0.05, num_threads=1, random_state=0),
    )


def _factorised(dataset: PreparedDataset, task: str, make: Callable[[], Any]) -> Ranker:
    """Candidates with training pairs by inner product, for anchors with training pairs; all else by popularity.

    Rows of the matrix are anchors, columns candidates. An anchor has a vector of its own beside the one that it has as
    a candidate: pairs keep their direction, and no row holds its anchor.
    """
    from threadpoolctl import threadpool_limits

    count_AN = interactions(dataset, task)
    known_A, item_M = np.unique(count_AN.nonzero()[0]), np.unique(count_AN.indices)
    if not len(known_A):
        return popularity(dataset, task)
    with threadpool_limits(1, "blas"):  # as `implicit` asks; it has threads of its own
        model = make()
        model.fit(csr_matrix(count_AN[known_A][:, item_M], dtype=np.float32), show_progress=False)
    place_A = np.full(count_AN.shape[0], -1)
    place_A[known_A] = np.arange(len(known_A))

    def scores(anchor_B: np.ndarray) -> np.ndarray:
        score_BM = model.user_factors[place_A[anchor_B]] @ model.item_factors.T
        score_BM[place_A[anchor_B] < 0] = -np.inf
        return whole_catalogue(score_BM, item_M, count_AN.shape[1])

    return by_scores(dataset, task, scores)
