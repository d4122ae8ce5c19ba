"""What an architecture of sharing is made of: towers, and for a side of the tasks what each adds to a tower's vector.

Everything stays residual around the towers' identity path (towers.py): what tasks have of their own adds to it, and
adds nothing at first.

Legend: E entities, B anchors or candidates of a task, P tasks asked for, D width, K experts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from torchrec_mt.models.spec import EntitySpec
from torchrec_mt.models.towers import ByName, ResidualMLP, Tower, product_flops


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths and depth of the towers and of what tasks have of their own, as of `ModelConfig`."""

    dim: int
    hidden: int
    depth: int
    task_hidden: int
    task_dim: int
    dropout: float

    def tower(self, entity: EntitySpec) -> Tower:
        """A tower for an entity."""
        return Tower(
            entity.widths,
            entity.dense_dim,
            dim=self.dim,
            hidden=self.hidden,
            depth=self.depth,
            dropout=self.dropout,
        )

    def own_block(self) -> ResidualMLP:
        """A task's own residual block."""
        return ResidualMLP(self.dim, self.task_hidden, self.dropout)


class Towers(nn.Module):
    """Features of entities -> their vectors: one for all tasks, or one per task."""

    per_task: bool

    def forward(self, entity: str, tasks: Sequence[str], features: Sequence[Tensor], dense_ED: Tensor) -> Tensor:
        """Vectors of entities, not normalised: x_ED, or where they are per task x_E(PD), those of each task together.

        Args:
            tasks: whose vectors are asked for. features: of every reader after the other, as of `EntitySpec.lookups`.
        """
        raise NotImplementedError

    def flops(self, entity: str, task: str) -> int:
        """Of an entity's vector for a task: multiplications and additions of matrix products."""
        raise NotImplementedError


class TaskSide(nn.Module):
    """An entity's vector -> the one of a task's side (anchors, or candidates)."""

    def forward(self, x_BD: Tensor, task: str) -> Tensor:
        """The task's vector_BD, not normalised."""
        raise NotImplementedError

    def flops(self, task: str) -> int:
        """Of a vector: multiplications and additions of matrix products."""
        raise NotImplementedError


class Parts(NamedTuple):
    """An architecture, built. candidates: None where candidates are what the towers say of them."""

    towers: Towers
    anchors: TaskSide
    candidates: TaskSide | None = None


class SharedTowers(ByName[Tower], Towers):
    """One tower per entity, for all tasks."""

    per_task = False

    def __init__(self, entities: Mapping[str, EntitySpec], sizes: Sizes) -> None:
        super().__init__({name: sizes.tower(entity) for name, entity in entities.items()})

    def forward(self, entity: str, tasks: Sequence[str], features: Sequence[Tensor], dense_ED: Tensor) -> Tensor:
        return self[entity](features, dense_ED)

    def flops(self, entity: str, task: str) -> int:
        return product_flops(self[entity])


class Experts(nn.ModuleList):
    """Residual blocks of which only what they add is taken."""

    def __init__(self, count: int, hidden: int, sizes: Sizes) -> None:
        super().__init__(ResidualMLP(sizes.dim, hidden, sizes.dropout) for _ in range(count))

    def added(self, x_BD: Tensor) -> list[Tensor]:
        """What each adds to x_BD."""
        return [cast("ResidualMLP", expert).added(x_BD) for expert in self]


def mixed(gate_BK: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """The sum of K parts (x_BD each), weighed by the gate."""
    return (gate_BK[:, :, None] * torch.stack(list(parts), dim=1)).sum(dim=1)
