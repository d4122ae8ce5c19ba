"""Why a table lies as it does: every way it could lie, what each takes, and why a way is not open to it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from torchrec_mt.distributed.layouts import Auto, LayoutName, layout_of
from torchrec_mt.distributed.planning import make_sharder
from torchrec_mt.distributed.plans.choices import Allowed, Choice, TableChoices
from torchrec_mt.distributed.plans.estimates import enumerate_choices, topology_of
from torchrec_mt.distributed.plans.placement import Placement
from torchrec_mt.distributed.plans.planner import Problem, Solved, TablesDoNotFitError, solve
from torchrec_mt.errors import UserError
from torchrec_mt.schema import TABLE_PREFIX

_TYPES: tuple[LayoutName, ...] = ("table_wise", "row_wise", "column_wise", "table_row_wise", "grid", "data_parallel")
_BLOCKS = 2


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way for a table, all other tables staying where they are.

    Args:
        chosen: whether the plan has it. refused: why it is not open, or empty. fits: whether ranks can hold it.
        largest_device, largest_host: bytes of the largest piece. pieces: how many.
        total_ms: of all pieces. busiest_ms: of the rank that is busiest then; None where it does not fit.
    """

    sharding_type: str
    kernel: str
    chosen: bool
    refused: str
    fits: bool
    pieces: int
    largest_device: int
    largest_host: int
    total_ms: float
    busiest_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A table's ways, the chosen first, then by what they would make of the busiest rank.

    Args:
        wish: what the config says of it. without_wish_ms: of the busiest rank if it said `auto` for this table; None
            where it does.
    """

    table: str
    wish: str
    ways: list[Way]
    without_wish_ms: float | None


def explain(problem: Problem, solved: Solved, names: Sequence[str]) -> list[Explained]:
    """Explains tables of a plan.

    Args:
        names: of the tables.

    Raises:
        UserError: a table that the plan lacks.
    """
    known = [table.name for table in solved.plan.tables]
    for name in names:
        if name not in known:
            raise UserError(f"--explain {name}: the model has no such table: {', '.join(known)}")
    every = _every_way(problem)
    plan = Placement(every, solved.capacity)
    for number, (choice, ranks) in enumerate(solved.found.placed):
        plan.put(number, choice, np.array(ranks))
    return [_explained(problem, solved, every[known.index(name)], plan, known.index(name)) for name in names]


def _every_way(problem: Problem) -> list[TableChoices]:
    """All that a table of its shape can do on the cluster, open to it or not."""
    on_gpu = problem.cluster.device.kind == "cuda"
    kernels = ("fused", "fused_uvm_caching", "fused_uvm") if on_gpu else ("fused",)
    types = {"table_wise", "row_wise", "data_parallel"} | ({"table_row_wise"} if problem.cluster.hosts > 1 else set())
    sharder = make_sharder(problem.sharding.communication, torch.device(problem.cluster.device.kind))
    allowed: dict[str, Allowed] = {}
    for name, lookups in problem.lookups.items():
        dim = problem.shapes[name][1]
        blocks = {"column_wise"} | ({"grid_shard"} if problem.cluster.hosts >= _BLOCKS else set())
        here = types | (blocks if dim % (4 * _BLOCKS) == 0 else set())
        allowed[TABLE_PREFIX + name] = Allowed(
            ways=tuple(
                (kind, kernel)
                for kind in sorted(here)
                for kernel in (("dense",) if kind == "data_parallel" else kernels)
            ),
            lookups=tuple(max(mean, 0.01) for mean in lookups),
            block_columns=dim // _BLOCKS,
            cache_share=problem.sharding.cache_share,
        )
    topology = topology_of(problem.cluster)
    return enumerate_choices(problem.module, sharder, topology, allowed, batch_rows=problem.batch_rows)


def _explained(problem: Problem, solved: Solved, table: TableChoices, plan: Placement, number: int) -> Explained:
    name = table.name.removeprefix(TABLE_PREFIX)
    chosen, ranks = plan.take(number)
    here = {(choice.sharding_type, choice.kernel): choice for choice in table.choices}
    here[chosen.sharding_type, chosen.kernel] = chosen
    ways = [_way(problem, solved, name, table, choice, chosen, plan, number) for choice in here.values()]
    plan.put(number, chosen, ranks)
    layout = problem.sharding.of(name)
    ways.sort(key=lambda way: (not way.chosen, bool(way.refused), way.busiest_ms is None, way.busiest_ms or 0.0))
    return Explained(
        table=name,
        wish=layout.kind,
        ways=ways,
        without_wish_ms=None if isinstance(layout, Auto) else _without_wish(problem, name),
    )


def _way(
    problem: Problem,
    solved: Solved,
    name: str,
    table: TableChoices,
    choice: Choice,
    chosen: Choice,
    plan: Placement,
    number: int,
) -> Way:
    is_chosen = (choice.sharding_type, choice.kernel) == (chosen.sharding_type, chosen.kernel)
    best, busiest = plan.best([choice]), None
    if is_chosen:
        busiest = solved.found.busiest_ms
    elif best is not None:
        plan.put(number, *best)
        busiest = plan.key()[0]
        plan.take(number)
    return Way(
        sharding_type=choice.sharding_type,
        kernel=choice.kernel,
        chosen=is_chosen,
        refused="" if is_chosen else _refused(problem, name, choice),
        fits=is_chosen or best is not None,
        pieces=len(choice.shards),
        largest_device=int(choice.device_S.max()),
        largest_host=int(choice.host_S.max()),
        total_ms=choice.total_ms,
        busiest_ms=busiest,
    )


def _refused(problem: Problem, name: str, choice: Choice) -> str:
    """Why a way is not open: it cannot be right, or the config says otherwise; empty where it is open."""
    kind: Any = "grid" if choice.sharding_type == "grid_shard" else choice.sharding_type
    try:
        problem.check(name, layout_of(kind))
    except UserError as error:
        return str(error)
    wish = problem.sharding.of(name)
    open_ways = problem.ways(name)
    if (choice.sharding_type, choice.kernel) in open_ways:
        return ""
    return f"the config says '{wish.kind}': set sharding.tables.{name} to it"


def _without_wish(problem: Problem, name: str) -> float | None:
    tables = {**problem.sharding.tables, name: layout_of("auto")}
    try:
        freed = solve(replace(problem, sharding=replace(problem.sharding, tables=tables), pinned=None))
    except TablesDoNotFitError:
        return None
    return freed.plan.busiest.ms
