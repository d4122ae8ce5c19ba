"""A map: points in a plane such that neighbours in the space of the vectors stay neighbours.

Legend: N points, D width, K neighbours.
"""

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator, eigsh

NEIGHBOURS = 15
_LINK = 0.1
"""Regularisation: so much of every point's degree goes evenly to all, which holds a graph of many parts together."""


def plane(vector_ND: np.ndarray, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Places in the unit square, [N, 2].

    Two eigenvectors of the graph of nearest neighbours (Belkin & Niyogi, "Laplacian eigenmaps for dimensionality
    reduction and data representation", Neural Computation 2003), regularised (Zhang & Rohe, "Understanding regularized
    spectral clustering via graph conductance", NeurIPS 2018). Each axis is then spread by rank: what is dense stays
    readable, distances say nothing, neighbourhoods do.

    Args:
        vector_ND: unit vectors.
    """
    count = len(vector_ND)
    if count < 4:  # no two eigenvectors to be had beside the constant one
        return np.linspace(0, 1, 2 * count).reshape(count, 2)
    near_NK = nearest(vector_ND, neighbours)
    width = near_NK.shape[1]
    edges = (np.ones(count * width), (np.repeat(np.arange(count), width), near_NK.ravel()))
    graph = sp.csr_matrix(edges, (count, count))
    graph = graph.maximum(graph.T)
    scale_N = 1 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel() + _LINK)

    def step(x: np.ndarray) -> np.ndarray:
        scaled = scale_N * x.ravel()
        return scale_N * (graph @ scaled + _LINK * scaled.mean())

    operator = LinearOperator((count, count), matvec=step, dtype=np.float64)
    value, vector = eigsh(operator, k=3, which="LA", v0=np.ones(count))
    place_N2 = (vector[:, np.argsort(-value)] * scale_N[:, None])[:, 1:]
    return place_N2.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable") / (count - 1)


def nearest(vector_ND: np.ndarray, neighbours: int) -> np.ndarray:
    """Rows of each point's nearest others by inner product, near_NK, in no order; all others where there are fewer."""
    similar_NN = vector_ND @ vector_ND.T
    np.fill_diagonal(similar_NN, -np.inf)
    width = min(neighbours, len(vector_ND) - 1)
    return np.argpartition(-similar_NN, width - 1, axis=1)[:, :width]


def agreement(near_NK: np.ndarray, label_N: np.ndarray) -> float:
    """Share of neighbours with the label of the point."""
    return float((label_N[near_NK] == label_N[:, None]).mean())
