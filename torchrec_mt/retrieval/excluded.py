"""Candidates that are left out of single anchors' rankings.

Legend: B anchors (Q of a chunk), L entries, or candidates of an anchor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Excluded:
    """Candidates that are left out of an anchor's ranking: itself, items already seen. Rows may repeat.

    owner_L: positions of anchors, ascending. row_L: rows of the catalogue, -1 for none.
    """

    owner_L: Tensor
    row_L: Tensor

    @classmethod
    def nothing(cls, device: torch.device) -> "Excluded":
        """No anchor leaves anything out."""
        return cls(*torch.zeros(2, 0, dtype=torch.int64, device=device))

    @classmethod
    def one_each(cls, row_B: Tensor) -> "Excluded":
        """One row per anchor, -1 for none."""
        return cls(torch.arange(len(row_B), device=row_B.device), row_B)

    def check(self, anchors: int) -> None:
        """Raises a ValueError if owners are not ascending positions of that many anchors."""
        if len(self.owner_L) == len(self.row_L) == 0:
            return
        if len(self.owner_L) != len(self.row_L) or bool((self.owner_L.diff() < 0).any()):
            raise ValueError("owner_L must be ascending, and as long as row_L")
        if int(self.owner_L[0]) < 0 or int(self.owner_L[-1]) >= anchors:
            raise ValueError(f"owner_L must name anchors from 0 to {anchors - 1}")

    def to(self, device: torch.device) -> "Excluded":
        """The same on a device."""
        return Excluded(self.owner_L.to(device), self.row_L.to(device))

    def of(self, anchors: slice) -> "Excluded":
        """Those of the anchors of a slice, numbered from 0."""
        edges = torch.tensor([anchors.start, anchors.stop], device=self.owner_L.device)
        first, last = torch.searchsorted(self.owner_L, edges).tolist()
        return Excluded(self.owner_L[first:last] - anchors.start, self.row_L[first:last])

    def only(self, anchor_Q: Tensor) -> "Excluded":
        """Those of the given anchors (ascending), numbered from 0."""
        at_L = torch.searchsorted(anchor_Q, self.owner_L).clamp(max=max(len(anchor_Q) - 1, 0))
        there_L = anchor_Q[at_L] == self.owner_L
        return Excluded(at_L[there_L], self.row_L[there_L])

    def counts(self, anchors: int, candidates: int) -> Tensor:
        """How many of the candidates 0, 1, ... each anchor leaves out, repeats counted: count_B."""
        if not len(self.owner_L):
            return self.owner_L.new_zeros(anchors)
        there_L = (self.row_L >= 0) & (self.row_L < candidates)
        return torch.bincount(self.owner_L[there_L], minlength=anchors)

    def holds(self, row_QL: Tensor) -> Tensor:
        """Whether an anchor (a row of row_QL) leaves a candidate out: bool_QL."""
        if not row_QL.numel() or not len(self.owner_L):
            return torch.zeros_like(row_QL, dtype=torch.bool)
        first_L = torch.ones_like(self.owner_L, dtype=torch.bool)
        first_L[1:] = self.owner_L[1:] != self.owner_L[:-1]
        if bool(first_L.all()):
            row_Q = row_QL.new_full((len(row_QL),), -2)
            row_Q[self.owner_L] = self.row_L
            return row_QL == row_Q[:, None]
        width = int(max(self.row_L.max(), row_QL.max())) + 2
        key_L = (self.owner_L * width + self.row_L).sort().values
        wanted_QL = torch.arange(len(row_QL), device=row_QL.device)[:, None] * width + row_QL
        return key_L[torch.searchsorted(key_L, wanted_QL).clamp(max=len(key_L) - 1)] == wanted_QL
