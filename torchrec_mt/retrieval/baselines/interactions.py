"""The interaction matrix of a task: rows are its anchors, columns its candidates, values counts of training pairs."""

import numpy as np
from scipy.sparse import csr_array, eye_array

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.ranker import same_entity


def interactions(dataset: PreparedDataset, task: str, *, own_item: bool = False) -> csr_array:
    """The task's training pairs as a sparse matrix: count_AN, float64, a row per anchor and a column per candidate.

    An anchor's row is its history, as a user's is in the literature. Where anchors and candidates are the same entity,
    an anchor is an item itself.

    Args:
        own_item: there, put the anchor into its own row with a count of 1 (if it has training pairs), as if it had
            been bought with its candidates: methods that compare columns then see the pairs themselves, not only
            candidates that share an anchor.
    """
    info, pairs = dataset.manifest.tasks[task], dataset.pairs(task, "train")
    shape = tuple(dataset.manifest.entities[entity].count for entity in (info.anchor, info.candidate))
    count_AN = csr_array((pairs["count"].astype(np.float64), (pairs["anchor"], pairs["candidate"])), shape=shape)
    if own_item and same_entity(dataset, task):
        own_AN = eye_array(shape[0], format="csr")
        own_AN.data[np.diff(count_AN.indptr) == 0] = 0.0
        count_AN = csr_array(count_AN + own_AN)
        count_AN.eliminate_zeros()
    return count_AN


def scaled(matrix: csr_array, *, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> csr_array:
    """A copy with every row divided by its entry of `rows`, every column by its entry of `columns`."""
    data = matrix.data.copy()
    if rows is not None:
        data /= np.repeat(rows, np.diff(matrix.indptr))
    if columns is not None:
        data /= columns[matrix.indices]
    return csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)
