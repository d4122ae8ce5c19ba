"""Lanes: a step's batch is read in as many lanes as the run started on ranks, however many ranks it has now.

What a lane holds does not depend on ranks. Ranks hold equal consecutive parts of all lanes side by side: some lanes
each, or part of one. So the pairs and draws of a step are the same, in the same order over all ranks.
"""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from torchrec_mt.data.collate import TaskPairs
from torchrec_mt.errors import UserError


@dataclass(frozen=True)
class Lanes:
    """How lanes lie on ranks, seen from one rank.

    Raises:
        UserError: neither of the two numbers divides the other.
    """

    number: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        if self.number % self.world_size and self.world_size % self.number:
            parts = [ranks for ranks in range(1, self.number + 1) if self.number % ranks == 0]
            raise UserError(
                f"a run of {self.number} lanes (the ranks that it started on) cannot be read by {self.world_size} "
                f"ranks: take {', '.join(str(ranks) for ranks in parts)}, or a multiple of {self.number}"
            )

    @property
    def mine(self) -> range:
        """The lanes that this rank makes."""
        first = self.rank * self.number // self.world_size
        return range(first, first + max(1, self.number // self.world_size))

    @property
    def sharers(self) -> int:
        """Ranks that a lane lies on."""
        return max(1, self.world_size // self.number)

    def counts(self, size: int) -> tuple[int, ...]:
        """Rows on each rank, where every lane has `size`; ranks that share a lane may differ by one."""
        ends = [rank * self.number * size // self.world_size for rank in range(self.world_size + 1)]
        return tuple(stop - start for start, stop in pairwise(ends))

    def part(self, size: int) -> slice:
        """This rank's rows of the lanes that it makes, joined."""
        first = self.mine.start * size
        start, stop = ((rank * self.number * size // self.world_size) - first for rank in (self.rank, self.rank + 1))
        return slice(start, stop)


def joined(parts: list[TaskPairs]) -> TaskPairs:
    """The pairs and draws of several lanes side by side."""
    if len(parts) == 1:
        return parts[0]
    firsts = np.cumsum([0] + [len(part.anchor_B) for part in parts[:-1]])
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(TaskPairs)):
        values = [getattr(part, name) for part in parts]
        match values[0]:
            case np.ndarray():
                found[name] = np.concatenate(values)
            case (np.ndarray(), np.ndarray()):
                owners = [owner_L + first for (owner_L, _), first in zip(values, firsts, strict=True)]
                found[name] = np.concatenate(owners), np.concatenate([id_L for _, id_L in values])
            case same:
                found[name] = same
    return TaskPairs(**found)


def cut(pairs: TaskPairs, rows: slice, draws: slice) -> TaskPairs:
    """Some consecutive pairs (`rows`), and some consecutive draws (`draws`)."""
    found: dict[str, Any] = {}
    for name in (field.name for field in fields(TaskPairs)):
        match getattr(pairs, name):
            case np.ndarray() as values:
                found[name] = values[draws if name.endswith("_M") else rows]
            case (np.ndarray() as owner_L, np.ndarray() as id_L):
                first, last = np.searchsorted(owner_L, [rows.start, rows.stop])
                found[name] = owner_L[first:last] - rows.start, id_L[first:last]
            case same:
                found[name] = same
    return TaskPairs(**found)
