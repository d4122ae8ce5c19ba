"""The unified two-tower model: Batch -> unit vectors of anchors, candidates and negatives per task.

Towers encode every distinct entity of the batch once. Candidates of all tasks live in one space (one index serves all
tasks) and the task is on the anchor side alone, unless `model.sharing` gives each task candidates of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from torchrec_mt.batch import Batch, Negatives, Pairs
from torchrec_mt.errors import require, within
from torchrec_mt.models.embeddings import Embeddings
from torchrec_mt.models.scales import TaskScales, Temperature
from torchrec_mt.models.sharing.choice import Sharing, build, per_task_candidates
from torchrec_mt.models.sharing.conditioned import Conditioned
from torchrec_mt.models.sharing.parts import Parts, Sizes
from torchrec_mt.models.spec import ModelSpec
from torchrec_mt.models.towers import Tower, in_slices, unit


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the towers.

    Args:
        dim: width D of the vectors. Tables of the same width enter on the identity path, others through a projection.
        hidden, depth: width and number of residual blocks per tower.
        task_hidden, task_dim: width of a task's own block and of the task embedding.
        sharing: what tasks share, and what each has of its own.
        match_parameters: widths inside blocks and experts are scaled so that there are so many dense parameters, within
            2%; 0 leaves them.
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
    sharing: Sharing = field(default_factory=Conditioned)
    match_parameters: int = 0
    dropout: float = 0.0
    temperature: Temperature = field(default_factory=Temperature)
    temperatures: dict[str, Temperature] = field(default_factory=dict)
    rows_at_once: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        within(self, 1, 65_536, "dim", "hidden", "task_hidden", "task_dim")
        within(self, 0, 100, "depth")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "from 0 to below 1")
        within(self, 0, 1_000_000_000, "rows_at_once", "match_parameters")

    @property
    def sizes(self) -> Sizes:
        """What the architecture is built by."""
        return Sizes(
            dim=self.dim,
            hidden=self.hidden,
            depth=self.depth,
            task_hidden=self.task_hidden,
            task_dim=self.task_dim,
            dropout=self.dropout,
        )


class Vectors(NamedTuple):
    """What the losses need: "the cut". All vectors have length 1.

    anchor_BD, candidate_BD per task; private_BHD per task that has hard negatives; negative_MD per candidate entity, or
    per task where candidates have a vector per task; inverse temperature and bias (scalars) per task. Beside them, for
    balancing, what they are made of: entity_ED per entity (ENTITY@TASK where towers are the tasks' own), as its tower
    put it out, of any length.
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


def dense_modules(spec: ModelSpec, config: ModelConfig) -> tuple[Parts, TaskScales]:
    """All of the model but its tables."""
    parts = build(config.sharing, spec, config.sizes)
    return parts, TaskScales(spec.tasks, config.temperature, config.temperatures, spec.biased)


class TwoTower(nn.Module):
    """The model.

    `vocabularies` names by table the dataset's table whose rows it has; `per_task_candidates` says whether a candidate
    has a vector per task.

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
        self.vocabularies = spec.vocabularies
        self.per_task_candidates = per_task_candidates(config.sharing)
        lookups = {name: entity.lookups for name, entity in spec.entities.items()}
        self.embeddings = Embeddings(spec.tables, lookups, table_device or device)
        with torch.device(device):
            parts, scales = dense_modules(spec, config)
        self.towers, self.conditioning, self.candidate_side = parts
        self.scales = scales

    def last_layers(self) -> list[Tensor]:
        """Weights of the last layer of every tower: the last that all tasks share which go through it."""
        return [tower.last.weight for tower in self.towers.modules() if isinstance(tower, Tower)]

    def encode(
        self, batch: Batch, sparse: Mapping[str, list[Tensor]] | None = None, tasks: Sequence[str] | None = None
    ) -> dict[str, dict[str | None, Tensor]]:
        """Every entity of the batch before the tasks' sides, not normalised: by entity and task its vector_ED; the task
        is None where towers are the same for all.

        Args:
            tasks: whose vectors are asked for; None: all.
        """
        if sparse is None:
            sparse = self.embeddings(batch.features, entity_ranges(batch))
        found: dict[str, dict[str | None, Tensor]] = {}
        for entity, rows in batch.entities.items():
            wanted = [task for task, sides in self._spec.tasks.items() if entity in sides]
            wanted = [task for task in wanted if tasks is None or task in tasks]
            x = self._in_slices(
                lambda *inputs, entity=entity, wanted=wanted: self.towers(
                    entity, wanted, inputs[:-1], inputs[-1]
                ).float(),
                *sparse[entity],
                rows.dense_ED,
            )
            each = x.chunk(len(wanted), dim=1) if self.towers.per_task else [x]
            found[entity] = dict(zip(wanted if self.towers.per_task else [None], each, strict=True))
        return found

    def anchors(self, x_BD: Tensor, task: str) -> Tensor:
        """Unit anchor vectors of a task from `encode`'s vectors."""
        return self._in_slices(lambda x_RD: unit(self.conditioning(x_RD, task).float()), x_BD)

    def candidates(self, x_BD: Tensor, task: str) -> Tensor:
        """Unit candidate vectors of a task from `encode`'s vectors."""
        side = self.candidate_side
        if side is None:
            return unit(x_BD)
        return self._in_slices(lambda x_RD: unit(side(x_RD, task).float()), x_BD)

    def _in_slices(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=self._bfloat16):
            return in_slices(function, self._rows_at_once, *inputs)

    def forward(
        self,
        batch: Batch,
        anchors_of: Mapping[str, str] | None = None,
        sparse: Mapping[str, list[Tensor]] | None = None,
        candidates_of: Mapping[str, str] | None = None,
    ) -> Vectors:
        """Vectors of the batch's pairs; or, without pairs, of its entities.

        Args:
            batch: shapes as in `batch.Batch`.
            anchors_of: task -> anchor entity to encode as whole (a batch without pairs); its candidates come per entity
                in `negative`, unless they have a vector per task. None: the pairs of the batch.
            sparse: what `embeddings` gave for the batch, where it was looked up before.
            candidates_of: task -> candidate entity to encode as whole, beside `anchors_of`; they come in `candidate`.
        """
        if anchors_of is not None:
            return self._whole(batch, sparse, anchors_of, candidates_of or {})
        x = self.encode(batch, sparse)
        units = {} if self.per_task_candidates else {entity: unit(of[None]) for entity, of in x.items()}
        inverse_temperature, bias = self.scales()
        named = {f"{name}@{task}" if task else name: x_ED for name, of in x.items() for task, x_ED in of.items()}
        found = Vectors({}, {}, {}, {}, inverse_temperature, bias, named)
        for task, pairs in batch.pairs.items():
            anchor, candidate = self._spec.tasks[task]
            # Rows are taken by `index_select`: the backward of plain indexing took seven times as long on a CPU.
            found.anchor[task] = self.anchors(x[anchor][self._of(task)].index_select(0, pairs.anchor_B), task)
            if self.per_task_candidates:
                self._take_own(found, task, x[candidate][self._of(task)], pairs, batch.negatives.get(candidate))
                continue
            found.candidate[task] = units[candidate].index_select(0, pairs.candidate_B)
            if pairs.private is not None:
                row_BH = pairs.private.row_BH
                found.private[task] = units[candidate].index_select(0, row_BH.flatten()).unflatten(0, row_BH.shape)
        if not self.per_task_candidates:
            for entity, negatives in batch.negatives.items():
                found.negative[entity] = units[entity].index_select(0, negatives.row_M)
        return found

    def _of(self, task: str) -> str | None:
        """Where `encode` has the vectors of a task."""
        return task if self.towers.per_task else None

    def _whole(
        self,
        batch: Batch,
        sparse: Mapping[str, list[Tensor]] | None,
        anchors_of: Mapping[str, str],
        candidates_of: Mapping[str, str],
    ) -> Vectors:
        """Vectors of the batch's entities."""
        x = self.encode(batch, sparse, [*anchors_of, *candidates_of])
        shared = {} if self.per_task_candidates else {entity: unit(of[None]) for entity, of in x.items()}
        return Vectors(
            anchor={task: self.anchors(x[entity][self._of(task)], task) for task, entity in anchors_of.items()},
            candidate={
                task: self.candidates(x[entity][self._of(task)], task) for task, entity in candidates_of.items()
            },
            private={},
            negative=shared,
            inverse_temperature={},
            bias={},
            entity={},
        )

    def _take_own(self, found: Vectors, task: str, x_ED: Tensor, pairs: Pairs, drawn: Negatives | None) -> None:
        """A task's candidates where they have a vector per task: only the rows that it has go through its side."""
        none = pairs.candidate_B[:0]
        row_BH = none[:, None] if pairs.private is None else pairs.private.row_BH
        rows = [pairs.candidate_B, row_BH.flatten(), none if drawn is None else drawn.row_M]
        vectors = self.candidates(x_ED.index_select(0, torch.cat(rows)), task)
        candidate_BD, private, negative_MD = vectors.split([len(part) for part in rows])
        found.candidate[task] = candidate_BD
        if pairs.private is not None:
            found.private[task] = private.unflatten(0, row_BH.shape)
        if drawn is not None:
            found.negative[task] = negative_MD
