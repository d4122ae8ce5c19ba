"""Shared bottom (Caruana, Machine Learning 1997): shared towers, and a small head of its own for each task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from torchrec_mt.models.sharing.parts import Sizes, TaskSide
from torchrec_mt.models.towers import ByName, product_flops


@dataclass(frozen=True, kw_only=True)
class SharedBottom:
    """Shared towers, and a residual block of its own for each task.

    Args:
        candidate_side: blocks on the candidates' side, too, so that a candidate's vector is per task.
    """

    shared_tables: ClassVar[bool] = True
    own_tables: ClassVar[bool] = False
    widths: ClassVar[tuple[str, ...]] = ()

    kind: Literal["shared_bottom"] = "shared_bottom"
    candidate_side: bool = False


class OwnBlocks(TaskSide):
    """A residual block of its own for each task."""

    def __init__(self, tasks: Sequence[str], sizes: Sizes) -> None:
        super().__init__()
        self.own = ByName({task: sizes.own_block() for task in tasks})

    def forward(self, x_BD: Tensor, task: str) -> Tensor:
        return self.own[task](x_BD)

    def flops(self, task: str) -> int:
        return product_flops(self.own[task])
