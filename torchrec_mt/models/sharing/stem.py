"""STEM (Su et al., AAAI 2024, arXiv 2312.01305): tables of all tasks and tables of each, every one with its towers.

All forward, task-specific backward: a task's vector mixes what all towers of an entity say, and its gradient goes back
into the shared one and its own alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from torchrec_mt.models.sharing.parts import Sizes, Towers, mixed
from torchrec_mt.models.sharing.single import by_reader, own_towers
from torchrec_mt.models.spec import ModelSpec
from torchrec_mt.models.towers import ByName, Tower, product_flops, zeroed


@dataclass(frozen=True, kw_only=True)
class Stem:
    """Shared tables and towers beside those of each task, mixed by gates with stopped gradients; then the task's own
    residual block."""

    shared_tables: ClassVar[bool] = True
    own_tables: ClassVar[bool] = True
    candidate_side: ClassVar[bool] = False
    widths: ClassVar[tuple[str, ...]] = ()

    kind: Literal["stem"] = "stem"


class StemTowers(Towers):
    """The gate's mixture of an entity's towers: shared, and of each task that has the entity.

    A gate reads the features of shared and own tables, added up, and starts at equal shares.
    """

    per_task = True

    def __init__(self, spec: ModelSpec, sizes: Sizes) -> None:
        super().__init__()
        self._readers = {name: entity.readers for name, entity in spec.entities.items()}
        self.shared = ByName({name: sizes.tower(entity) for name, entity in spec.entities.items()})
        self.own = ByName({task: own_towers(spec, task, sizes) for task in spec.tasks})
        self.gates = ByName({task: ByName(self._gates(spec, task)) for task in spec.tasks})

    def _gates(self, spec: ModelSpec, task: str) -> dict[str, nn.Linear]:
        entities = {name: spec.entities[name] for name in dict.fromkeys(spec.tasks[task])}
        return {
            name: zeroed(nn.Linear(sum(entity.widths) + entity.dense_dim, len(entity.readers)))
            for name, entity in entities.items()
        }

    def forward(self, entity: str, tasks: Sequence[str], features: Sequence[Tensor], dense_ED: Tensor) -> Tensor:
        of = by_reader(self._readers[entity], features)
        said = {reader: self._tower(entity, reader)(own, dense_ED) for reader, own in of.items()}
        stopped = {reader: x_ED.detach() for reader, x_ED in said.items()}
        found = []
        for task in tasks:
            added = [shared_ED + own_ED for shared_ED, own_ED in zip(of[None], of[task], strict=True)]
            gate_EK = self.gates[task][entity](torch.cat([*added, dense_ED], dim=1)).softmax(dim=1)
            found.append(mixed(gate_EK, [*({**stopped, None: said[None], task: said[task]}.values())]))
        return torch.cat(found, dim=1)

    def flops(self, entity: str, task: str) -> int:
        towers = [self._tower(entity, reader) for reader in self._readers[entity]]
        return product_flops(*towers, self.gates[task][entity])

    def _tower(self, entity: str, reader: str | None) -> Tower:
        return self.shared[entity] if reader is None else self.own[reader][entity]
