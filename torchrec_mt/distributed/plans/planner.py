"""The one way to a plan, for imagined clusters and for the job that trains: config in, plan out, on every rank alike.

TorchRec's `collective_plan` raises on rank 0 alone and leaves the others waiting. Here every rank plans by itself
(planning is deterministic and needs no communication) and all compare the outcome.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata

import numpy as np
import torch
from torch import nn

from torchrec_mt.distributed.layouts import (
    Auto,
    ColumnWise,
    Grid,
    Hosts,
    Layout,
    check_layout,
    kernel_of,
    leaves_a_rank_empty,
)
from torchrec_mt.distributed.planning import ShardingConfig, make_sharder, table_shapes, too_few_rows
from torchrec_mt.distributed.plans.choices import Allowed, Cost, TableChoices
from torchrec_mt.distributed.plans.clusters import Cluster
from torchrec_mt.distributed.plans.estimates import enumerate_choices, topology_of
from torchrec_mt.distributed.plans.follow import follow
from torchrec_mt.distributed.plans.placement import Capacity
from torchrec_mt.distributed.plans.plan import Plan, planned_table, rank_loads
from torchrec_mt.distributed.plans.reasons import Refused, why_not
from torchrec_mt.distributed.plans.search import DoesNotFitError, Found, Progress, search
from torchrec_mt.distributed.table_optimizers import RowWiseAdagrad, TableOptimizer
from torchrec_mt.errors import UserError
from torchrec_mt.schema import TABLE_PREFIX

_DENSE_COPIES = 5
"""Of each dense parameter, float32: itself, its gradient, the bucket it is averaged in, two of Adam."""


class TablesDoNotFitError(UserError):
    """No plan fits: exit code 3.

    Args:
        message: the reason. table: the one without a place. piece: what the largest piece of it takes, in the way that
            takes least of a rank.
    """

    def __init__(self, message: str, table: str, piece: Cost) -> None:
        super().__init__(message, exit_code=3)
        self.table, self.piece = table, piece


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is to be planned.

    Args:
        module: the unsharded model, its tables marked with their optimizer. batch_rows: rows of a batch per rank.
        lookups: per table, mean lookups per row for each key that reads it. averages: of dense weights are kept.
        pinned: a plan to follow.
    """

    module: nn.Module
    sharding: ShardingConfig
    cluster: Cluster
    lookups: Mapping[str, list[float]]
    batch_rows: int
    optimizer: TableOptimizer = field(default_factory=RowWiseAdagrad)
    averages: bool = False
    pinned: Plan | None = None
    model: str = ""

    @property
    def hosts(self) -> Hosts:
        """The machines."""
        return Hosts(self.cluster.hosts, self.cluster.ranks_per_host)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each table."""
        return table_shapes(self.module)

    def check(self, table: str, layout: Layout) -> None:
        """Refuses a layout that the table cannot have here.

        Raises:
            UserError: see `check_layout`.
        """
        rows, dim = self.shapes[table]
        check_layout(
            table,
            layout,
            rows=rows,
            dim=dim,
            optimizer=self.optimizer,
            device_type=self.cluster.device.kind,
            hosts=self.hosts,
            world_size=self.cluster.world_size,
        )

    def layout(self, table: str) -> Layout:
        """What the config says of a table, but for a default that would leave ranks without rows of it."""
        rows = {table: self.shapes[table][0]}
        few = too_few_rows(self.sharding, rows, world_size=self.cluster.world_size, hosts=self.hosts)
        return few.get(table, self.sharding.of(table))

    def ways(self, table: str) -> tuple[tuple[str, str], ...]:
        """Sharding types and kernels that the search may choose from."""
        return ways_of(self.layout(table), rows=self.shapes[table][0], hosts=self.hosts)

    def dense_bytes(self) -> int:
        """What the towers' parameters take on every rank while they are trained."""
        tables = {id(p) for p in self._tables()}
        return (
            4
            * (_DENSE_COPIES + self.averages)
            * sum(p.numel() for p in self.module.parameters() if id(p) not in tables)
        )

    def _tables(self) -> list[nn.Parameter]:
        sharder = make_sharder(self.sharding.communication, torch.device("cpu"))
        return [
            tensor
            for part in self.module.modules()
            if isinstance(part, sharder.module_type)
            for tensor in sharder.shardable_parameters(part).values()
        ]


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A plan with what it was chosen from."""

    plan: Plan
    choices: list[TableChoices]
    capacity: Capacity
    found: Found


def ways_of(layout: Layout, *, rows: int, hosts: Hosts) -> tuple[tuple[str, str], ...]:
    """What the search may choose from, by TorchRec's names; `auto` takes rows apart only where no rank stays empty."""
    match layout:
        case Auto():
            ways = [("table_wise", "fused")]
            if not leaves_a_rank_empty(rows, hosts.count * hosts.ranks):
                ways.append(("row_wise", "fused"))
            if hosts.count > 1 and not leaves_a_rank_empty(rows, hosts.ranks):
                ways.append(("table_row_wise", "fused"))
            return tuple(ways)
        case Grid():
            return (("grid_shard", layout.kernel),)
        case _:
            return ((layout.kind, kernel_of(layout)),)


def solve(
    problem: Problem,
    *,
    progress: Progress = lambda tried, ms: None,
    asked: Callable[[int, int], None] = lambda done, total: None,
) -> Solved:
    """Plans every table.

    Args:
        progress: of the search. asked: of the estimates, made and to make.

    Raises:
        UserError: a layout that cannot be right, a table that the model lacks, a pinned plan that cannot be followed.
        TablesDoNotFitError: none fits.
    """
    allowed = _allowed(problem)
    sharder = make_sharder(problem.sharding.communication, torch.device(problem.cluster.device.kind))
    choices = enumerate_choices(
        problem.module, sharder, topology_of(problem.cluster), allowed, batch_rows=problem.batch_rows, progress=asked
    )
    dense, capacity = problem.dense_bytes(), capacity_of(problem)
    try:
        found = (
            follow(problem.pinned, choices, problem.hosts, capacity)
            if problem.pinned
            else search(choices, capacity, progress=progress)
        )
    except DoesNotFitError as error:
        refused = Refused(
            cluster=problem.cluster,
            choices=choices,
            table=choices[error.table],
            capacity=capacity,
            left=error.left,
            dense_bytes=dense,
            reserve=problem.sharding.reserve,
        )
        name = refused.table.name.removeprefix(TABLE_PREFIX)
        raise TablesDoNotFitError(why_not(refused), name, refused.piece) from None
    tables = [
        planned_table(table, choice, ranks, table.name.removeprefix(TABLE_PREFIX))
        for table, (choice, ranks) in zip(choices, found.placed, strict=True)
    ]
    plan = Plan(
        model=problem.model,
        torchrec=metadata.version("torchrec"),
        cluster=problem.cluster.to_json(),
        batch_rows=problem.batch_rows,
        reserve=problem.sharding.reserve,
        optimizer=problem.optimizer.kind,
        bound_ms=found.bound_ms,
        tables=tables,
        ranks=rank_loads(tables, problem.cluster, dense=dense, reserve=problem.sharding.reserve),
    )
    _check_whole(problem, plan)
    return Solved(plan=plan, choices=choices, capacity=capacity, found=found)


def capacity_of(problem: Problem) -> Capacity:
    """What ranks have for tables: their memory without the reserve and the towers."""
    cluster, kept = problem.cluster, 1 - problem.sharding.reserve
    on_device = int(kept * (cluster.device_bytes or cluster.host_bytes)) - problem.dense_bytes()
    on_host = int(kept * cluster.host_bytes) if cluster.device_bytes else 0
    ranks = cluster.world_size
    return Capacity(np.full(ranks, float(on_device)), np.full(ranks, float(on_host)), cluster.ranks_per_host)


def _allowed(problem: Problem) -> dict[str, Allowed]:
    unknown = set(problem.sharding.tables) - set(problem.lookups)
    if unknown:
        raise UserError(
            f"sharding.tables names {sorted(unknown)}, which are no tables of the dataset: {sorted(problem.lookups)}"
        )
    shapes, allowed = problem.shapes, {}
    if not shapes:
        raise UserError(
            "the model has no tables: declare a feature that reads one (of kind 'id', 'category', 'categories' or "
            "'text') in dataset.entities"
        )
    for table, lookups in problem.lookups.items():
        layout, (rows, dim) = problem.layout(table), shapes[table]
        problem.check(table, layout)
        allowed[TABLE_PREFIX + table] = Allowed(
            ways=ways_of(layout, rows=rows, hosts=problem.hosts),
            lookups=tuple(max(mean, 0.01) for mean in lookups),
            block_columns=dim // layout.columns if isinstance(layout, ColumnWise | Grid) else None,
            cache_share=problem.sharding.cache_share,
        )
    return allowed


def _check_whole(problem: Problem, plan: Plan) -> None:
    """Every table of the model is in the plan, once, and its shards cover it."""
    planned, wanted = sorted(table.name for table in plan.tables), sorted(problem.shapes)
    if planned != wanted:
        raise AssertionError(f"the plan holds {planned}, the model {wanted}")
    for table in plan.tables:
        copies = problem.cluster.world_size if table.sharding_type == "data_parallel" else 1
        covered = sum(rows * columns for _, _, _, rows, columns, _ in table.shards)
        if covered != copies * table.rows * table.dim:
            raise AssertionError(f"the plan covers {covered} numbers of table '{table.name}' on {copies} copies")
