"""The unified two-tower model: Batch -> unit vectors of anchors, candidates and negatives per task.

One tower per entity encodes every distinct entity of the batch once. Candidates of all tasks live in one space (one
index serves all tasks); the task is on the anchor side alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from torchrec_mt.batch import Batch
from torchrec_mt.errors import require, within
from torchrec_mt.models.embeddings import Embeddings, TableSpec
from torchrec_mt.models.scales import TaskScales, Temperature
from torchrec_mt.models.towers import ByName, TaskConditioning, Tower, in_slices, unit


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the towers.

    Args:
        dim: width D of the vectors. Tables of the same width enter on the identity path, others through a projection.
        hidden, depth: width and number of residual blocks per tower.
        task_hidden, task_dim: width of a task's own anchor block and of the task embedding.
        dropout: inside the residual blocks.
        temperature: of tasks not named in `temperatures`.
        rows_at_once: entities (and anchors) that go through the towers at a time, 0 for all: their activations are then
            computed again in the backward pass instead of being kept (GradCache, Gao et al. 2021, with one backward).
        precision: of the matrix products in the towers. With bfloat16 (torch's autocast) weights, gradients and the
            vectors that come out stay float32.
    """

    dim: int = 64
    hidden: int = 128
    depth: int = 1
    task_hidden: int = 128
    task_dim: int = 16
    dropout: float = 0.0
    temperature: Temperature = field(default_factory=Temperature)
    temperatures: dict[str, Temperature] = field(default_factory=dict)
    rows_at_once: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        within(self, 1, 65_536, "dim", "hidden", "task_hidden", "task_dim")
        within(self, 0, 100, "depth")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")
        within(self, 0, 1_000_000_000, "rows_at_once")


@dataclass(frozen=True, kw_only=True)
class EntitySpec:
    """What a tower reads: keys of its sparse features with their widths, and the width of its dense features."""

    keys: tuple[str, ...]
    widths: tuple[int, ...]
    dense_dim: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What the data and the losses demand of the model.

    Args:
        tasks: (anchor, candidate) entity per trained task. biased: tasks whose loss has a learned bias.
    """

    tables: tuple[TableSpec, ...]
    entities: dict[str, EntitySpec]
    tasks: dict[str, tuple[str, str]]
    biased: tuple[str, ...] = ()


class Vectors(NamedTuple):
    """What the losses need: "the cut". All vectors have length 1.

    anchor_BD, candidate_BD per task; private_BHD per task that has hard negatives; negative_MD per candidate entity;
    inverse temperature and bias (scalars) per task. Beside them, for balancing, what they are made of: entity_ED per
    entity, as its tower put it out, of any length.
    """

    anchor: dict[str, Tensor]
    candidate: dict[str, Tensor]
    private: dict[str, Tensor]
    negative: dict[str, Tensor]
    inverse_temperature: dict[str, Tensor]
    bias: dict[str, Tensor]
    entity: dict[str, Tensor]

    def for_losses(self) -> tuple[dict[str, Tensor], ...]:
        """All but `entity`, in order."""
        return self[:-1]


def entity_ranges(batch: Batch) -> dict[str, tuple[int, int]]:
    """Which rows of the batch are whose."""
    return {entity: (rows.start, rows.stop) for entity, rows in batch.entities.items()}


class TwoTower(nn.Module):
    """The model.

    Args:
        device: where dense weights are made. table_device: where tables are made; `meta` when they will be sharded.
    """

    def __init__(
        self, spec: ModelSpec, config: ModelConfig, *, device: torch.device, table_device: torch.device | None = None
    ) -> None:
        super().__init__()
        self._spec = spec
        self._rows_at_once = config.rows_at_once
        self._bfloat16 = config.precision == "bfloat16"
        keys = {name: entity.keys for name, entity in spec.entities.items()}
        self.embeddings = Embeddings(spec.tables, keys, table_device or device)
        with torch.device(device):
            self.towers = ByName(
                {
                    name: Tower(
                        entity.widths,
                        entity.dense_dim,
                        dim=config.dim,
                        hidden=config.hidden,
                        depth=config.depth,
                        dropout=config.dropout,
                    )
                    for name, entity in spec.entities.items()
                }
            )
            self.conditioning = TaskConditioning(
                list(spec.tasks),
                dim=config.dim,
                hidden=config.task_hidden,
                task_dim=config.task_dim,
                dropout=config.dropout,
            )
            self.scales = TaskScales(spec.tasks, config.temperature, config.temperatures, spec.biased)

    def last_layers(self) -> list[Tensor]:
        """Weights of the last layer of every tower: the last that all tasks of an entity share."""
        towers = [self.towers[name] for name in self._spec.entities]
        return [tower.last.weight for tower in towers if isinstance(tower, Tower)]

    def encode(self, batch: Batch, sparse: Mapping[str, list[Tensor]] | None = None) -> dict[str, Tensor]:
        """Every entity of the batch, vector_ED per entity type, before task conditioning, not normalised."""
        if sparse is None:
            sparse = self.embeddings(batch.features, entity_ranges(batch))
        return {
            entity: self._in_slices(
                lambda *inputs, tower=self.towers[entity]: tower(inputs[:-1], inputs[-1]).float(),
                *sparse[entity],
                rows.dense_ED,
            )
            for entity, rows in batch.entities.items()
        }

    def anchors(self, x_BD: Tensor, task: str) -> Tensor:
        """Unit anchor vectors of a task from `encode`'s vectors."""
        return self._in_slices(lambda x_RD: unit(self.conditioning(x_RD, task).float()), x_BD)

    def _in_slices(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=self._bfloat16):
            return in_slices(function, self._rows_at_once, *inputs)

    def forward(
        self,
        batch: Batch,
        anchors_of: Mapping[str, str] | None = None,
        sparse: Mapping[str, list[Tensor]] | None = None,
    ) -> Vectors:
        """Vectors of the batch's pairs; or, without pairs, of its entities.

        Args:
            batch: shapes as in `batch.Batch`.
            anchors_of: task -> anchor entity to encode as whole (a batch without pairs); its candidates come per entity
                in `negative`. None: the pairs of the batch.
            sparse: what `embeddings` gave for the batch, where it was looked up before.
        """
        x = self.encode(batch, sparse)
        if anchors_of is not None:
            return Vectors(
                anchor={task: self.anchors(x[entity], task) for task, entity in anchors_of.items()},
                candidate={},
                private={},
                negative={entity: unit(x_ED) for entity, x_ED in x.items()},
                inverse_temperature={},
                bias={},
                entity={},
            )
        # Rows are taken by `index_select`: the backward of plain indexing took seven times as long on a CPU.
        units = {entity: unit(x_ED) for entity, x_ED in x.items()}
        anchor, candidate, private = {}, {}, {}
        for task, pairs in batch.pairs.items():
            anchor_entity, candidate_entity = self._spec.tasks[task]
            anchor[task] = self.anchors(x[anchor_entity].index_select(0, pairs.anchor_B), task)
            candidate[task] = units[candidate_entity].index_select(0, pairs.candidate_B)
            if pairs.private is not None:
                row_BH = pairs.private.row_BH
                private[task] = units[candidate_entity].index_select(0, row_BH.flatten()).unflatten(0, row_BH.shape)
        negative = {
            entity: units[entity].index_select(0, negatives.row_M) for entity, negatives in batch.negatives.items()
        }
        inverse_temperature, bias = self.scales()
        return Vectors(anchor, candidate, private, negative, inverse_temperature, bias, x)
