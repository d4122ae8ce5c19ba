"""Three small tables under every layout: trained on any number of ranks, and once more by hand without any of it.

The tables differ in what layouts stumble over: two keys, rows that make no equal blocks, another width.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel

from torchrec_mt.distributed.layouts import ColumnWise, Grid, Layout, LayoutName
from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.plans.job import make_plan
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.distributed.sharding import fuse_table_optimizer, shard
from torchrec_mt.distributed.table_optimizers import Adagrad, RowWiseAdagrad, Sgd, TableOptimizer
from torchrec_mt.distributed.table_state import Value, table_state
from torchrec_mt.models.embeddings import embedding_collection
from torchrec_mt.models.spec import TableSpec
from torchrec_mt.training.optim import OptimConfig, Optimizers
from torchrec_mt.training.schedule import CosineSchedule, rate_factor

STEPS, ROWS = 10, 8
"""Steps of training, and rows of a batch of all ranks."""
RANKS_OF_A_HOST = {1: 1, 2: 1, 4: 2}
SPECS = (
    TableSpec(name="a", rows=37, dim=16, keys=("a0", "a1")),
    TableSpec(name="b", rows=7, dim=8, keys=("b0",)),
    TableSpec(name="c", rows=23, dim=16, keys=("c0",)),
)
OPTIMIZERS: dict[str, TableOptimizer] = {one.kind: one for one in (RowWiseAdagrad(), Adagrad(), Sgd())}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layout of the tables under one optimizer.

    Args:
        hosts: how many it needs. blocks: by table, of columns that have sums of their own under row-wise Adagrad.
    """

    sharding: ShardingConfig
    hosts: int = 1
    blocks: dict[str, int] | None = None


def _cases(optimizer: TableOptimizer) -> dict[str, Case]:
    accepted = isinstance(optimizer, RowWiseAdagrad)
    columns = ColumnWise(kind="column_wise", columns=2, sum_per_block=accepted)
    grid = Grid(kind="grid", columns=2, sum_per_block=accepted)
    mixed: dict[str, LayoutName | Layout] = {"a": columns, "b": "data_parallel", "c": "row_wise"}
    hosts: dict[str, LayoutName | Layout] = {"a": grid, "b": "table_row_wise", "c": columns}
    halves = dict.fromkeys("abc", 2)
    return {
        **{kind: Case(sharding=ShardingConfig(default=kind)) for kind in ("data_parallel", "table_wise", "row_wise")},
        "column_wise": Case(sharding=ShardingConfig(default=columns), blocks=halves),
        "fours": Case(
            sharding=ShardingConfig(tables={"a": ColumnWise(kind="column_wise", columns=4, sum_per_block=accepted)}),
            blocks={"a": 4},
        ),
        "mixed": Case(sharding=ShardingConfig(tables=mixed), blocks={"a": 2}),
        "table_row_wise": Case(sharding=ShardingConfig(default="table_row_wise"), hosts=2),
        "grid": Case(sharding=ShardingConfig(default=grid), hosts=2, blocks=halves),
        "mixed_hosts": Case(sharding=ShardingConfig(tables=hosts), hosts=2, blocks={"a": 2, "c": 2}),
    }


CASES = {(kind, name): case for kind, rule in OPTIMIZERS.items() for name, case in _cases(rule).items()}


def runs_on(case: Case, world_size: int) -> bool:
    return world_size // RANKS_OF_A_HOST[world_size] >= case.hosts


class Tables(nn.Module):
    """Looks up all keys; the loss weighs each row's sum by hand. `scale` is for DDP, which wants a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.collection = embedding_collection(SPECS, torch.device("meta"))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, features: KeyedJaggedTensor, weight: dict[str, Tensor]) -> Tensor:
        pooled = self.collection(features).to_dict()
        return sum((pooled[key] * weight_BD).sum(dim=1).mean() for key, weight_BD in weight.items()) + 0 * self.scale


def start() -> dict[str, Tensor]:
    """The weights that training starts from, rows x dim."""
    generator = torch.Generator().manual_seed(1)
    return {spec.name: torch.randn(spec.rows, spec.dim, generator=generator) for spec in SPECS}


def batch(step: int) -> dict[str, tuple[list[list[int]], Tensor]]:
    """Of all ranks, by key: ids of each row's bag (its weights are all 1), and the weight of its sum in the loss."""
    generator = torch.Generator().manual_seed(100 + step)
    found = {}
    for spec in SPECS:
        for key in spec.keys:
            sizes = torch.randint(0, 4, (ROWS,), generator=generator).tolist()
            ids = [torch.randint(0, spec.rows, (size,), generator=generator).tolist() for size in sizes]
            found[key] = (ids, torch.randn(ROWS, spec.dim, generator=generator))
    return found


def by_hand(kind: str, blocks: dict[str, int]) -> dict[int, dict[str, Tensor]]:
    """State after each step: weights and sums of squares, by plain tensors and formulas."""
    weights, states = start(), {}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}  # a row's sum, once for each column
    config = OptimConfig(schedule=CosineSchedule(warmup_steps=2), table_rate=0.1)
    for step in range(STEPS):
        rate = config.table_rate * rate_factor(config.schedule, step, STEPS)
        for spec in SPECS:
            gradient = torch.zeros(spec.rows, spec.dim)
            for key in spec.keys:
                ids, weight_BD = batch(step)[key]
                for bag, weight_D in zip(ids, weight_BD, strict=True):
                    for row in bag:
                        gradient[row] += weight_D / ROWS
            match kind:
                case "sgd":
                    weights[spec.name] -= rate * gradient
                    continue
                case "adagrad":
                    sums[spec.name] += gradient**2
                case "rowwise_adagrad":
                    parts = gradient.chunk(blocks.get(spec.name, 1), dim=1)
                    means = [(part**2).mean(dim=1, keepdim=True).expand_as(part) for part in parts]
                    sums[spec.name] += torch.cat(means, dim=1)
            weights[spec.name] -= rate * gradient / (sums[spec.name].sqrt() + 1e-8)
        states[step] = {
            **{f"tables.{name}.weight": weight.clone() for name, weight in weights.items()},
            **{f"tables.{name}.sum": value.clone() for name, value in sums.items() if kind != "sgd"},
        }
    return states


class Training:
    """A case on the present ranks."""

    def __init__(self, kind: str, case: Case) -> None:
        self.rule, self.rank, self.size = OPTIMIZERS[kind], dist.get_rank(), dist.get_world_size()
        module, device = Tables(), torch.device("cpu")
        fuse_table_optimizer(module.collection, 0.1, self.rule)
        plan, _ = make_plan(
            module,
            case.sharding,
            pooling_factors={spec.name: [2.0] * len(spec.keys) for spec in SPECS},
            batch_size=ROWS,
            device_type="cpu",
            optimizer=self.rule,
        )
        self.model: DistributedModelParallel = shard(module, plan, device)
        config = OptimConfig(tables=self.rule, table_rate=0.1, schedule=CosineSchedule(warmup_steps=2))
        self.optimizers = Optimizers(config, self.model, STEPS)
        self._fill(start())

    def _fill(self, weights: dict[str, Tensor]) -> None:
        """Through the views of the live tables."""
        for name, value in table_state(self.model, None).items():
            whole = weights[name.split(".")[1]]
            for (row, column), tensor in value.pieces if isinstance(value, Pieces) else [((0, 0), value)]:
                tensor.copy_(whole[row : row + tensor.shape[0], column : column + tensor.shape[1]])

    def state(self) -> dict[str, Value]:
        return table_state(self.model, self.rule, self.optimizers.combined)

    def step(self, step: int) -> None:
        self.optimizers.set_rate(step)
        self.optimizers.zero_grad()
        self.pass_backward(step)
        self.optimizers.step()

    def pass_backward(self, step: int) -> None:
        """Forward and backward alone: updates tables whose optimizer is fused into it."""
        mine = slice(self.rank * ROWS // self.size, (self.rank + 1) * ROWS // self.size)
        given = {key: (ids[mine], weight_BD[mine]) for key, (ids, weight_BD) in batch(step).items()}
        bags = [bag for ids, _ in given.values() for bag in ids]
        values = torch.tensor([row for bag in bags for row in bag], dtype=torch.int64)
        features = KeyedJaggedTensor(
            keys=list(given),
            values=values,
            lengths=torch.tensor([len(bag) for bag in bags]),
            weights=torch.ones(len(values)),
        )
        self.model(features, {key: weight_BD for key, (_, weight_BD) in given.items()}).backward()


def place_on_hosts() -> None:
    """Tells TorchRec of hosts, in a rank's own process: it takes them from the environment."""
    quiet_dependencies()
    os.environ["LOCAL_WORLD_SIZE"] = str(RANKS_OF_A_HOST[dist.get_world_size()])


def told(state: dict[str, Value]) -> dict[str, Any]:
    """This rank's part of a state, for `joined`: shape, offsets and copies of the pieces."""
    return {
        name: (
            [list(value.shape), [[list(offsets), tensor.clone()] for offsets, tensor in value.pieces]]
            if isinstance(value, Pieces)
            else [list(value.shape), [[[0, 0], value.clone()]]]
        )
        for name, value in state.items()
    }


def joined(ranks: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Whole tensors of what all ranks told; every entry must be there, and copies equal."""
    whole = {}
    for name, (shape, _) in ranks[0].items():
        value = torch.full(shape, torch.nan)
        for rank in ranks:
            for (row, column), tensor in rank[name][1]:
                part = value[row : row + tensor.shape[0], column : column + tensor.shape[1]]
                assert part.shape == tensor.shape, name
                assert part.isnan().all() or torch.equal(part, tensor), f"{name}: two pieces overlap and differ"
                part.copy_(tensor)
        assert not value.isnan().any(), f"{name} has a hole"
        whole[name] = value
    return whole
