"""What a task asks: the anchors that are judged, their right answers, how both are parted, what products are like.

Read once per task from the prepared dataset; every system is judged on the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.metrics import Relevant
from torchrec_mt.retrieval.slices import Slicings, category_feature, category_rows, slicings


@dataclass(frozen=True)
class Products:
    """What the measures of lists must know.

    Args:
        count_N: training pairs of each product in the task. category_N: -1 for unknown; None where the catalogue has no
            category. anchor_category_B: of the anchors, numbered alike; None where they have none to compare.
    """

    count_N: np.ndarray
    category_N: np.ndarray | None
    anchor_category_B: np.ndarray | None


@dataclass(frozen=True)
class Questions:
    """What a task asks.

    Args:
        anchor_B: rows of the anchors, ascending, each with a relevant item. num_without_positives: anchors that were
            left out because nothing is relevant to them.
        relevant: their right answers. slicings: how both are parted. products: what products are like.
    """

    anchor_B: np.ndarray
    num_without_positives: int
    relevant: Relevant
    slicings: Slicings
    products: Products

    @property
    def num_products(self) -> int:
        """Size of the catalogue."""
        return len(self.products.count_N)


def relevant_of(anchor_B: np.ndarray, pairs: Mapping[str, np.ndarray]) -> Relevant:
    """The right answers of the given anchors (ascending); a pair of grade 0 is judged irrelevant.

    A pair that stands there more than once is one answer, of its best grade.
    """
    position = np.searchsorted(anchor_B, pairs["anchor"])
    known = (pairs["grade"] > 0) & (anchor_B[np.minimum(position, len(anchor_B) - 1)] == pairs["anchor"])
    owner, items, gains = position[known], pairs["candidate"][known], pairs["grade"][known]
    order = np.lexsort((-gains, items, owner))
    owner, items, gains = owner[order], items[order], gains[order]
    first = np.ones(len(owner), bool)
    first[1:] = (owner[1:] != owner[:-1]) | (items[1:] != items[:-1])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[first], minlength=len(anchor_B)))])
    return Relevant(offsets, items[first], gains[first].astype(np.float64))


def questions_of(
    dataset: PreparedDataset,
    task: str,
    anchor_B: np.ndarray,
    pairs: Mapping[str, np.ndarray],
    columns: Sequence[tuple[str, str]] = (),
) -> Questions:
    """What a task asks.

    Args:
        anchor_B: rows of the anchors, ascending. pairs: of the split. columns: to cut slices by, see `slice_columns`.
    """
    relevant = relevant_of(anchor_B, pairs)
    positive_B = relevant.count_B > 0
    anchor_B = anchor_B[positive_B]
    return Questions(
        anchor_B=anchor_B,
        num_without_positives=int((~positive_B).sum()),
        relevant=relevant.of_anchors(positive_B),
        slicings=slicings(dataset, task, anchor_B, columns),
        products=_products(dataset, task, anchor_B),
    )


def _products(dataset: PreparedDataset, task: str, anchor_B: np.ndarray) -> Products:
    info, entities = dataset.manifest.tasks[task], dataset.manifest.entities
    count_N, feature = dataset.frequencies(task), category_feature(dataset, info.candidate)
    if feature is None:
        return Products(count_N, None, None)
    category_N = _known(category_rows(dataset, info.candidate, feature))
    own = category_feature(dataset, info.anchor)
    # Rows of one table are comparable; of another one the same number is another category.
    same = (
        own is not None
        and entities[info.anchor].features[own].table == entities[info.candidate].features[feature].table
    )
    if own is None or not same:
        return Products(count_N, category_N, None)
    return Products(count_N, category_N, _known(category_rows(dataset, info.anchor, own, anchor_B)))


def _known(row_N: np.ndarray) -> np.ndarray:
    """Row 0 stands for all that is rare: two of it need not be of one category."""
    return np.where(row_N > 0, row_N, -1)
