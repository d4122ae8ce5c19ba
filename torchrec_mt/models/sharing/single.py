"""Single: every task has tables and towers of its own. Models of one task each, trained side by side in one run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from torchrec_mt.models.sharing.parts import Sizes, Towers
from torchrec_mt.models.spec import ModelSpec
from torchrec_mt.models.towers import ByName, Tower, product_flops


@dataclass(frozen=True, kw_only=True)
class Single:
    """Nothing is shared: tables, towers and a residual block of its own for each task."""

    shared_tables: ClassVar[bool] = False
    own_tables: ClassVar[bool] = True
    candidate_side: ClassVar[bool] = False
    widths: ClassVar[tuple[str, ...]] = ()

    kind: Literal["single"] = "single"


class OwnTowers(Towers):
    """Towers of each task, for the entities that it has, which read the task's own tables."""

    per_task = True

    def __init__(self, spec: ModelSpec, sizes: Sizes) -> None:
        super().__init__()
        self._readers = {name: entity.readers for name, entity in spec.entities.items()}
        self.own = ByName({task: own_towers(spec, task, sizes) for task in spec.tasks})

    def forward(self, entity: str, tasks: Sequence[str], features: Sequence[Tensor], dense_ED: Tensor) -> Tensor:
        of = by_reader(self._readers[entity], features)
        return torch.cat([self.own[task][entity](of[task], dense_ED) for task in tasks], dim=1)

    def flops(self, entity: str, task: str) -> int:
        return product_flops(self.own[task][entity])


def own_towers(spec: ModelSpec, task: str, sizes: Sizes) -> ByName[Tower]:
    """A tower for each entity of a task."""
    return ByName({name: sizes.tower(spec.entities[name]) for name in dict.fromkeys(spec.tasks[task])})


def by_reader(readers: Sequence[str | None], features: Sequence[Tensor]) -> Mapping[str | None, Sequence[Tensor]]:
    """The features of each reader; there are as many of each."""
    each = len(features) // len(readers)
    return {reader: features[at * each : (at + 1) * each] for at, reader in enumerate(readers)}
