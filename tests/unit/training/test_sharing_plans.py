"""Planning on meta tensors knows every architecture: its tables, whose vocabulary they have, its towers."""

from pathlib import Path

import pytest

from tests.sharing_kinds import KINDS
from tests.tiny_run import tiny_config, write_tiny_dataset
from torchrec_mt.config import RunConfig
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.plans.changes import kinds_of_change
from torchrec_mt.distributed.plans.clusters import parse_cluster
from torchrec_mt.distributed.plans.planner import solve
from torchrec_mt.distributed.plans.stuck import Stuck
from torchrec_mt.errors import UserError
from torchrec_mt.training.assemble import size_of, told_of_tables
from torchrec_mt.workflows.planning import problem_of
from torchrec_mt.workflows.twin_plan import twin_config

TABLES = ("tokens", "product_id", "kind")
TASKS = ("find", "alike", "goes_with")
OWN = {f"{table}@{task}" for table in TABLES for task in TASKS}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "data"
    write_tiny_dataset(path)
    return path


def config_of(data: Path, name: str, *overrides: str) -> RunConfig:
    kind = KINDS[name]
    keys = [f"model.sharing.{key}={str(value).lower()}" for key, value in vars(kind).items()]
    return tiny_config(data, *keys, *overrides)


@pytest.mark.parametrize("name", KINDS)
def test_every_architecture_is_planned(data: Path, name: str) -> None:
    config = config_of(data, name, "model.match_parameters=40_000")
    problem = problem_of(config, parse_cluster("1x4xH100-80GB"))
    plan = solve(problem).plan
    expected = {"single": OWN, "stem": OWN | {*TABLES}}.get(name, {*TABLES})
    assert {table.name for table in plan.tables} == expected
    rows = {table.name: table.rows for table in plan.tables}
    assert {rows[table] for table in rows if table.startswith("product_id")} == {61}
    size = size_of(PreparedDataset.open(data).manifest, config.dataset, config.model, config.loss)
    assert problem.dense_bytes() == 4 * 5 * size.dense_parameters
    lookups = {table.name: table.lookups for table in plan.tables}
    for table, mean in lookups.items():
        assert mean == pytest.approx(lookups.get(table.partition("@")[0], mean))


def test_copies_lie_as_their_table_unless_they_are_named(data: Path) -> None:
    config = config_of(data, "stem", 'sharding.tables.tokens="row_wise"', 'sharding.tables.tokens@find="data_parallel"')
    plan = solve(problem_of(config, parse_cluster("1x2xCPU"))).plan
    ways = {table.name: table.sharding_type for table in plan.tables if table.name.startswith("tokens")}
    assert ways == {
        "tokens": "row_wise",
        "tokens@find": "data_parallel",
        "tokens@alike": "row_wise",
        "tokens@goes_with": "row_wise",
    }


def test_tables_that_lie_another_way_than_by_default_are_told_by_their_own_names(data: Path) -> None:
    """`kind` has four rows, too few for three ranks in blocks of two; a copy that is named is left as it is."""
    config = config_of(data, "single", 'sharding.default="row_wise"', 'sharding.tables.kind@find="data_parallel"')
    manifest = PreparedDataset.open(data).manifest
    told = told_of_tables(manifest, config.dataset, config.model, config.sharding, config.loss, world_size=3)
    assert [line.partition(":")[0] for line in told] == ["table kind@alike", "table kind@goes_with"]


@pytest.mark.parametrize(
    ("name", "table"), [("conditioned", "tokens@find"), ("single", "tokens@nobody"), ("stem", "no")]
)
def test_tables_that_the_model_lacks_are_refused(data: Path, name: str, table: str) -> None:
    config = config_of(data, name, f'sharding.tables.{table}="row_wise"')
    with pytest.raises(UserError, match=rf"sharding\.tables names \['{table}'\], which are no tables"):
        solve(problem_of(config, parse_cluster("1x2xCPU")))


def test_changes_of_a_copy_name_the_declared_table(data: Path) -> None:
    problem = problem_of(config_of(data, "single"), parse_cluster("1x2xCPU"))
    piece = solve(problem).choices[0].choices[0].costs[0]
    stuck = Stuck(problem=problem, table="tokens@find", piece=piece, cluster="1x2xCPU", batch_size=60)
    said = [
        override
        for kind, ladders in kinds_of_change(stuck)
        if kind in ("dtype", "dim", "rows")
        for ladder in ladders
        for rung in range(ladder.rungs)
        for override in ladder.at(rung).overrides
    ]
    assert said
    assert not [override for override in said if "@" in override]


def test_a_twin_keeps_the_layouts_of_its_own_tables(data: Path) -> None:
    layouts = [f'sharding.tables.{table}="row_wise"' for table in ("tokens", "tokens@find", "tokens@alike")]
    twin = twin_config(config_of(data, "stem", *layouts), "find", pairs=20, steps=3)
    assert set(twin.sharding.tables) == {"tokens", "tokens@find"}
