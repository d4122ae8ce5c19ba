"""The blocks of rows in which a checkpoint is read: checked one by one, into the target's own memory where they fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Block:
    """Rows of a file that have a checksum together, and what is wanted of them.

    Args:
        begin: their first byte. digest: their checksum. target: takes what is wanted.
        shape: of the whole block. offsets: where in it the target lies.
    """

    begin: int
    digest: str
    target: Tensor
    shape: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of the whole block."""
        return math.prod(self.shape) * self.target.dtype.itemsize

    @property
    def is_straight(self) -> bool:
        """Whether it can be read into the target's own memory."""
        target = self.target
        return target.device.type == "cpu" and target.is_contiguous() and self.shape == tuple(target.shape)

    def take(self, found: Tensor) -> None:
        """Fills the target from the block's bytes."""
        whole = found.view(self.target.dtype).view(self.shape)
        for dim, (offset, length) in enumerate(zip(self.offsets, self.target.shape, strict=True)):
            whole = whole.narrow(dim, offset, length)
        self.target.copy_(whole)


def runs_of(blocks: Sequence[Block], number: int) -> list[list[Block]]:
    """In their order, in at most so many runs of about as many bytes each."""
    runs: list[list[Block]] = [[] for _ in range(number)]
    total, before = sum(block.bytes for block in blocks), 0
    for block in blocks:
        runs[before * number // total].append(block)
        before += block.bytes
    return [run for run in runs if run]
