"""What `plan` foretells and what two ranks then build; a plan that is pinned; what a run says of its plan."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import Ended, Job
from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.distributed.plans.calibrate import calibrate
from torchrec_mt.distributed.plans.clusters import parse_cluster
from torchrec_mt.distributed.plans.plan import Plan
from torchrec_mt.distributed.plans.reading import read_plan
from torchrec_mt.errors import UserError
from torchrec_mt.plan import main


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = shared_root(tmp_path_factory)
    prepared_debug_shop(found)
    return found


def arguments(root: Path, *overrides: str) -> list[str]:
    given = [*debug_overrides(root), "trainer.steps=12", "trainer.log_every=2", *overrides]
    return [*FILES, *(f"--set={one}" for one in given)]


def train(root: Path, folder: Path, *overrides: str, ranks: int = 2) -> list[Ended]:
    job = Job(folder / "job", [*arguments(root, *overrides), "--output", str(folder / "run")], ranks=ranks)
    return job.wait(150)


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    assert [rank.code for rank in train(root, folder)] == [0, 0]
    return folder / "run"


def places(plan: Plan) -> dict[str, Any]:
    """What lies where."""
    return {table.name: (table.sharding_type, table.kernel, table.shards, table.costs) for table in plan.tables}


def test_what_is_foretold_is_what_two_ranks_build(root: Path, run: Path, tmp_path: Path) -> None:
    """Types, ranks, bytes. The machine's memory is told, since it is no other here than on the imagined cluster."""
    built = read_plan(str(run))
    memory = built.cluster["host_memory_gib"]
    output = str(tmp_path / "plan.json")
    asked = [*arguments(root), "--cluster", f"1x2xCPU,host_memory_gib={memory}", "--output", output]
    assert main(asked) == 0
    foretold = read_plan(output)
    assert places(foretold) == places(built)
    assert foretold.ranks == built.ranks
    held = json.loads((run / "held.json").read_text())
    assert [(rank.weights, rank.sums) for rank in foretold.ranks] == [(one["weights"], one["sums"]) for one in held]
    parameters = {one["dense"] for one in held}
    assert parameters == {foretold.ranks[0].dense // 5}, "a parameter, its gradient, its bucket and two of Adam"


def test_averages_of_weights_are_counted_by_both(root: Path, tmp_path: Path) -> None:
    assert [rank.code for rank in train(root, tmp_path, "optim.ema.decay=0.9", ranks=1)] == [0]
    assert main([*arguments(root, "optim.ema.decay=0.9"), "--output", str(tmp_path / "plan.json")]) == 0
    built, foretold = read_plan(str(tmp_path / "run")), read_plan(str(tmp_path / "plan.json"))
    parameters = {one["dense"] for one in json.loads((tmp_path / "run/held.json").read_text())}
    assert {rank.dense // 6 for plan in (built, foretold) for rank in plan.ranks} == parameters


def test_every_way_is_foretold_to_the_byte(root: Path, tmp_path: Path) -> None:
    """Replicated, whole, by rows and by columns, with Adagrad's sums."""
    ways = (
        "sharding.tables.brand=data_parallel",
        "sharding.tables.category=table_wise",
        "sharding.tables.tokens=row_wise",
        "sharding.tables.product_id=column_wise",
        "optim.tables.kind=adagrad",
    )
    assert [rank.code for rank in train(root, tmp_path, *ways)] == [0, 0]
    plan, held = read_plan(str(tmp_path / "run")), json.loads((tmp_path / "run/held.json").read_text())
    assert {table.name: table.sharding_type for table in plan.tables} == {
        "brand": "data_parallel",
        "category": "table_wise",
        "tokens": "row_wise",
        "product_id": "column_wise",
    }
    for rank, one in zip(plan.ranks, held, strict=True):
        assert rank.sums == one["sums"]
        assert rank.weights == one["weights"]


def test_a_pinned_plan_is_followed(root: Path, run: Path, tmp_path: Path) -> None:
    """Ranks exchanged, which no search would come to by itself."""
    plan = read_plan(str(run))
    tables = [
        replace(table, shards=[[1 - shard[0], *shard[1:]] for shard in table.shards])
        if table.sharding_type == "table_wise"
        else table
        for table in plan.tables
    ]
    assert tables != plan.tables
    (tmp_path / "mine.json").write_text(replace(plan, tables=tables).to_json())
    assert [rank.code for rank in train(root, tmp_path, f"sharding.plan={tmp_path}/mine.json")] == [0, 0]
    followed = read_plan(str(tmp_path / "run"))
    assert places(followed) == {table.name: places(replace(plan, tables=[table]))[table.name] for table in tables}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_plan_of_other_tables_or_ranks_ends_every_rank(root: Path, run: Path, tmp_path: Path, ranks: int) -> None:
    plan = read_plan(str(run))
    other = "dataset.tables.tokens.dim=32" if ranks == 2 else "trainer.steps=12"
    ended = train(root, tmp_path, f"sharding.plan={run}", other, ranks=ranks)
    assert [rank.code for rank in ended] == [2] * ranks
    said = {rank.error for rank in ended}
    if ranks == 2:
        rows = plan.table("tokens").rows
        theirs = f"table 'tokens' has {rows:,} x 32 float32, the plan for 1x2xCPU has {rows:,} x 64"
        assert all(theirs in one for one in said)
    else:
        assert "the plan for 1x2xCPU is pinned, and here 1 rank(s) are on 1 host(s)" in said.pop()
    assert not (tmp_path / "run").exists()


def test_calibration(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = calibrate(run)
    memory = [term for term in found.terms if term.unit == "B"]
    assert {(term.name, term.rank) for term in memory} == {(n, r) for n in ("weights", "sums") for r in (0, 1)}
    assert all(term.ratio == pytest.approx(1, abs=0.05) for term in memory)
    times = {term.name: term for term in found.terms if term.unit == "ms"}
    assert times.keys() == {"lookup (forward)", "tables (backward)"}
    assert all(term.measured > 0 < term.predicted for term in times.values())
    output = tmp_path / "here.toml"
    assert main(["calibrate", str(run), "--output", str(output), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["terms"]
    assert [one["ratio"] for one in printed] == [term.ratio for term in found.terms]
    calibrated, before = parse_cluster(str(output)), parse_cluster("1x2xCPU")
    factor = sum(term.predicted for term in times.values()) / sum(term.measured for term in times.values())
    assert calibrated.device.host_memory_gb_s == pytest.approx(before.device.host_memory_gb_s * factor, rel=1e-3)
    assert calibrated.device.source.startswith("debug on 1x2xCPU: bandwidths times ")


def test_what_cannot_be_calibrated_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no plan '.*plan.json'"):
        calibrate(tmp_path)
    (tmp_path / "plan.json").write_text((run / "plan.json").read_text())
    with pytest.raises(UserError, match=r"held.json' cannot be read"):
        calibrate(tmp_path)
    for text in ("null", "[{}, {}]", '{"weights": 1}', "[1, 2"):
        (tmp_path / "held.json").write_text(text)
        with pytest.raises(UserError, match=r"held.json' does not hold each rank's weights and sums"):
            calibrate(tmp_path)
    (tmp_path / "held.json").write_text((run / "held.json").read_text())
    (tmp_path / "metrics.jsonl").write_text('{"kind": "valid"}\n')
    with pytest.raises(UserError, match="has no line of training"):
        calibrate(tmp_path)
    for text, said in (
        ("5\n", "is not a log"),
        ("{\n", "is not a log"),
        ('{"kind": "train"}\n', "a number 'ms/lookup'"),
    ):
        (tmp_path / "metrics.jsonl").write_text(text)
        with pytest.raises(UserError, match=f"metrics.jsonl' .*{said}"):
            calibrate(tmp_path)
    (tmp_path / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + '{"kind": "tr')
    assert calibrate(tmp_path) == calibrate(run), "a line that is being written"
    (tmp_path / "held.json").write_text("[]")
    with pytest.raises(UserError, match="has 0 ranks, the plan 2"):
        calibrate(tmp_path)


def test_a_run_and_its_plan_do_not_differ(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(run), str(run / "plan.json")]) == 0
    assert capsys.readouterr().out == "no difference\n"
