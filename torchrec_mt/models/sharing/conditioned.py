"""Conditioned (the default): shared towers, and an anchor side that is told the task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from torchrec_mt.models.sharing.parts import Sizes, TaskSide
from torchrec_mt.models.towers import ByName, product_flops, zeroed


@dataclass(frozen=True, kw_only=True)
class Conditioned:
    """Scale and shift by the task's embedding, then the task's own residual block, on the anchor side.

    Args:
        lhuc: between the two, gates by entity and task.
    """

    shared_tables: ClassVar[bool] = True
    own_tables: ClassVar[bool] = False
    candidate_side: ClassVar[bool] = False
    widths: ClassVar[tuple[str, ...]] = ()

    kind: Literal["conditioned"] = "conditioned"
    lhuc: bool = False


class TaskConditioning(TaskSide):
    """Turns an entity's vector into the anchor of a task: FiLM by the task's embedding, then the task's own residual
    block.

    FiLM (Perez et al., AAAI 2018): scale and shift computed from a task embedding, starting at 1 and 0. The own block
    makes the anchor side directed: what a phone asks for (a case) is not what the phone is.
    """

    def __init__(self, tasks: Sequence[str], sizes: Sizes, *, lhuc: bool = False) -> None:
        super().__init__()
        self._row = {task: row for row, task in enumerate(tasks)}
        self.task_TD = nn.Parameter(torch.randn(len(tasks), sizes.task_dim) * sizes.task_dim**-0.5)
        self.film = zeroed(nn.Linear(sizes.task_dim, 2 * sizes.dim))
        self.own = ByName({task: sizes.own_block() for task in tasks})
        self.lhuc = Lhuc(sizes) if lhuc else None

    def forward(self, x_BD: Tensor, task: str) -> Tensor:
        task_D = self.task_TD[self._row[task]]
        scale_D, shift_D = self.film(task_D).chunk(2)
        x_BD = x_BD * (1 + scale_D) + shift_D
        if self.lhuc is not None:
            x_BD = self.lhuc(x_BD, task_D)
        return self.own[task](x_BD)

    def flops(self, task: str) -> int:
        # FiLM's own product is one a batch, not one an anchor.
        gates = 0 if self.lhuc is None else product_flops(self.lhuc)
        return product_flops(self.own[task]) + gates


class Lhuc(nn.Module):
    """Gates of 0 to 2 for every number of a vector, by the vector and the task; all start at 1.

    LHUC (Swietojanski & Renals, SLT 2014) learns amplitudes for each domain; here, as in PEPNet (Chang et al., KDD
    2023), a small network gives them. The gate reads the vector without changing it: no gradient goes back.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.up = nn.Linear(sizes.dim + sizes.task_dim, sizes.task_hidden)
        self.down = zeroed(nn.Linear(sizes.task_hidden, sizes.dim))

    def forward(self, x_BD: Tensor, task_D: Tensor) -> Tensor:
        told_BD = torch.cat([x_BD.detach(), task_D.expand(len(x_BD), -1)], dim=1)
        gate_BD = 2 * torch.sigmoid(self.down(nn.functional.relu(self.up(told_BD))))
        return x_BD * gate_BD
