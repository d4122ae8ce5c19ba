"""Which columns are no negatives of which anchor, found by id, as a sparse list: never a B x C matrix.

Legend: B anchors, C columns, L blocked (anchor, column) places or (anchor, id) entries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blocked:
    """Places of the B x C logits that count for nothing: row_L ascending, column_L; no place twice."""

    row_L: Tensor
    column_L: Tensor

    @classmethod
    def nothing(cls, device: torch.device) -> "Blocked":
        """No place."""
        empty = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(empty, empty)


def find_blocked(owner_L: Tensor, id_L: Tensor, column_id_C: Tensor) -> Blocked:
    """The columns that hold an id their anchor must not be compared with.

    Args:
        owner_L, id_L: entries (anchor position, id), owners ascending, no entry twice.
        column_id_C: id of each column; an id may stand in many columns.
    """
    sorted_C, order_C = column_id_C.sort(stable=True)
    distinct_U, copies_U = sorted_C.unique_consecutive(return_counts=True)
    if not len(distinct_U):
        return Blocked.nothing(column_id_C.device)
    # Most entries stand in no column: they are dropped by the one search in the distinct ids.
    at_L = torch.searchsorted(distinct_U, id_L).clamp(max=len(distinct_U) - 1)
    there_L = distinct_U[at_L] == id_L
    owner_L, at_L = owner_L[there_L], at_L[there_L]
    copies_L, first_L = copies_U[at_L], (copies_U.cumsum(0) - copies_U)[at_L]
    ends_L = copies_L.cumsum(0)
    total = int(ends_L[-1]) if len(ends_L) else 0
    within = torch.arange(total, device=at_L.device) - (ends_L - copies_L).repeat_interleave(copies_L)
    place = first_L.repeat_interleave(copies_L) + within
    return Blocked(owner_L.repeat_interleave(copies_L), order_C[place])


def row_sums(blocked: Blocked, value_L: Tensor, rows: int) -> Tensor:
    """Sum over each row's blocked places: sum_B."""
    return value_L.new_zeros(rows).index_add(0, blocked.row_L, value_L)
