"""A pinned plan is followed as it is, or refused with what is in the way."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from tests.unit.distributed.plans.models import OfTables
from torchrec_mt.distributed.layouts import ColumnWise, Grid, Layout, LayoutName
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.plans.clusters import parse_cluster
from torchrec_mt.distributed.plans.explain import explain
from torchrec_mt.distributed.plans.plan import Plan, PlannedTable
from torchrec_mt.distributed.plans.planner import Problem, solve
from torchrec_mt.errors import UserError

LAYOUTS: dict[str, LayoutName | Layout] = {
    "0": "table_row_wise",
    "1": "row_wise",
    "2": "table_wise",
    "3": Grid(kind="grid", columns=2, sum_per_block=True),
    "4": ColumnWise(kind="column_wise", columns=2, sum_per_block=True),
}


def problem(
    cluster: str = "2x2xH100", pinned: Plan | None = None, *, dim: int = 64, more: int = 0, reserve: float = 0.15
) -> Problem:
    shapes = [(1_000_000 * (number + 1), dim) for number in range(5 + more)]
    return Problem(
        module=OfTables(shapes),
        sharding=ShardingConfig(tables=LAYOUTS, default="table_wise", reserve=reserve),
        cluster=parse_cluster(cluster),
        lookups={str(number): [2.0] for number in range(len(shapes))},
        batch_rows=4096,
        pinned=pinned,
    )


@pytest.fixture(scope="module")
def plan() -> Plan:
    return solve(problem()).plan


def laid(plan: Plan, name: str, ranks: Sequence[int]) -> Plan:
    """The plan with a table's shards on other ranks."""

    def moved(table: PlannedTable) -> PlannedTable:
        shards = [[rank, *shard[1:]] for rank, shard in zip(ranks, table.shards, strict=True)]
        return replace(table, shards=shards)

    return replace(plan, tables=[moved(table) if table.name == name else table for table in plan.tables])


def test_a_plan_of_its_own_problem_gives_it_again(plan: Plan) -> None:
    assert solve(problem(pinned=plan)).plan == plan


def test_times_and_bound_are_those_of_the_problem(plan: Plan) -> None:
    slow = "2x2xH100,inter_host_gb_s=1"
    solved = solve(problem(slow, plan))
    assert [table.shards for table in solved.plan.tables] == [table.shards for table in plan.tables]
    assert solved.plan.bound_ms == solve(problem(slow)).plan.bound_ms > plan.bound_ms
    assert solved.found.busiest_ms == pytest.approx(solved.plan.busiest.ms)


def test_a_table_may_lie_where_no_search_would_lay_it(plan: Plan) -> None:
    for rank in range(4):
        followed = solve(problem(pinned=laid(plan, "2", [rank]))).plan
        assert followed.table("2").ranks == [rank]
    other_host = laid(plan, "0", [2, 3] if plan.table("0").ranks == [0, 1] else [0, 1])
    assert solve(problem(pinned=other_host)).plan.table("0").ranks == other_host.table("0").ranks


@pytest.mark.parametrize(
    ("name", "ranks"),
    [("0", [1, 2]), ("0", [1, 0]), ("1", [1, 0, 2, 3]), ("1", [0, 0, 0, 0]), ("3", [0, 1, 0, 1]), ("3", [0, 2, 1, 3])],
)
def test_a_place_that_is_none(plan: Plan, name: str, ranks: list[int]) -> None:
    """Hosts mixed up, ranks out of order, a host twice."""
    with pytest.raises(UserError, match=f"lays table '{name}' .* on ranks .*, where it cannot lie so: plan again"):
        solve(problem(pinned=laid(plan, name, ranks)))


@pytest.mark.parametrize("cluster", ["1x4xH100", "4x1xH100", "1x1xH100", "2x4xH100"])
def test_other_ranks_or_hosts(plan: Plan, cluster: str) -> None:
    whole = replace(plan, tables=[table for table in plan.tables if table.sharding_type == "table_wise"])
    here = replace(problem(cluster, whole), sharding=ShardingConfig(default="table_wise"))
    with pytest.raises(UserError, match=r"^the plan for 2x2xH100-80GB is pinned, and here .* plan again for "):
        solve(here)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: problem(pinned=plan, dim=32), "table '0' has 1,000,000 x 32 float32, the plan .* x 64 float32"),
        (lambda plan: problem(pinned=plan, more=1), "table '5' has .* the plan for 2x2xH100-80GB does not have it"),
        (
            lambda plan: problem(pinned=replace(plan, tables=[*plan.tables, replace(plan.tables[0], name="x")])),
            r"has tables that the model lacks: \['x'\]",
        ),
        (
            lambda plan: replace(problem(pinned=plan), sharding=ShardingConfig(tables=LAYOUTS | {"2": "row_wise"})),
            r"lays table '2' table_wise \(fused\), and here it may be row_wise \(fused\): set sharding.tables",
        ),
        (
            lambda plan: replace(
                problem(pinned=plan),
                sharding=ShardingConfig(
                    tables=LAYOUTS | {"4": ColumnWise(kind="column_wise", columns=4, sum_per_block=True)}
                ),
            ),
            r"cuts table '4' into 2 other pieces than the config does \(4\)",
        ),
    ],
)
def test_another_problem_than_the_plans(plan: Plan, change: Callable[[Plan], Problem], message: str) -> None:
    with pytest.raises(UserError, match=message):
        solve(change(plan))


def test_a_plan_that_does_not_fit_here(plan: Plan) -> None:
    with pytest.raises(UserError, match=r"does not fit: rank . would hold .* GiB of memory for them: plan") as error:
        solve(problem("2x2xH100,memory_gib=0.6", plan))
    assert error.value.exit_code == 3


def test_a_pinned_plan_is_explained(plan: Plan) -> None:
    pinned = problem(pinned=plan)
    solved = solve(pinned)
    (explained,) = explain(pinned, solved, ["0"])
    assert explained.ways[0].chosen
    assert explained.ways[0].busiest_ms == pytest.approx(solved.plan.busiest.ms)
    assert explained.without_wish_ms is not None


def test_a_model_without_tables() -> None:
    empty = replace(problem(), module=OfTables([]), sharding=ShardingConfig(), lookups={})
    with pytest.raises(UserError, match="the model has no tables: declare a feature that reads one"):
        solve(empty)
