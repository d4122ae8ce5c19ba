"""`torchrec-mt plan`: what it prints and refuses, plans side by side, why a table lies so, how two plans differ."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from torchrec_mt.distributed.plans.planner import Problem, Solved, solve
from torchrec_mt.errors import UserError
from torchrec_mt.plan import main
from torchrec_mt.workflows import planning

Printed = pytest.CaptureFixture[str]
BASE = ["launch/demo.toml", "launch/plans/billions.toml"]
SMALL = "plan.tables.product_id.rows=50_000_000"


def arguments(tmp_path: Path, *overrides: str) -> list[str]:
    given = [SMALL, *overrides, f"dataset.path={tmp_path}/nowhere"]
    return [*BASE, *(f"--set={one}" for one in given)]


def planned(capsys: Printed, *given: str) -> dict[str, Any]:
    assert main([*given, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_tables_for_the_terminal(tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*arguments(tmp_path), "--cluster", "2x8xH100"]) == 0
    said = capsys.readouterr().out
    assert "demo on 2x8xH100-80GB, 5,120 rows a batch and rank" in said
    for part in ("product_id", "50 million", "16 rank(s)", "busiest: rank ", "because of table '", "fullest: rank "):
        assert part in said
    assert "estimates of TorchRec's planner" in said


def test_the_config_names_a_cluster(tmp_path: Path, capsys: Printed) -> None:
    found = planned(capsys, *arguments(tmp_path, "plan.cluster=1x4xA100-80GB"))
    assert (found["cluster"]["name"], len(found["ranks"])) == ("A100-80GB", 4)


def test_plans_side_by_side(tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    clusters = ["--cluster", "1x8xH100,price_per_hour=30", "--cluster", "1x1xH100"]
    given = [*arguments(tmp_path), *clusters, "--what-if", "reader.batch_size=8192; model.dim=32"]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "A  1x8xH100-80GB" in said
    assert "D  1x1xH100-80GB reader.batch_size=8192; model.dim=32" in said
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 4
    slow = [plan["batch_rows"] for name, plan in found.items() if "8192" in name]
    assert slow == [2 * 8192 + 1024] * 2


def test_clusters_of_one_label_are_told_apart(tmp_path: Path, capsys: Printed) -> None:
    specs = ["1x8xH100", "1x8xH100,intra_host_gb_s=100", "1x4xH100"]
    assert main([*arguments(tmp_path), *(f"--cluster={spec}" for spec in specs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["1x8xH100", "1x8xH100,intra_host_gb_s=100", "1x4xH100-80GB"]
    assert [plan["cluster"]["intra_host_gb_s"] for plan in found.values()] == [450, 100, 450]


def test_an_interrupt_beside_others_is_told(tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(problem: Problem, **named: Any) -> Solved:
        solved = solve(problem, **named)
        return replace(solved, found=replace(solved.found, interrupted=problem.cluster.world_size == 4))

    monkeypatch.setattr(planning, "solve", impatient)
    assert main([*arguments(tmp_path), "--cluster=1x8xH100", "--cluster=1x4xH100"]) == 0
    said = capsys.readouterr().err
    assert "interrupted: this is the best plan so far for 1x4xH100-80GB" in said
    assert "1x8" not in said


def test_a_pinned_plan_is_followed(tmp_path: Path, capsys: Printed) -> None:
    given = [*arguments(tmp_path), "--cluster", "1x4xH100"]
    assert main([*given, "--output", str(tmp_path / "plan.json")]) == 0
    raw = json.loads((tmp_path / "plan.json").read_text())
    brand = next(table for table in raw["tables"] if table["name"] == "brand")
    brand["shards"][0][0] = (brand["shards"][0][0] + 1) % 4
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    capsys.readouterr()
    followed = planned(capsys, *given, f"--set=sharding.plan={tmp_path}/plan.json")
    assert followed["tables"] == raw["tables"]
    with pytest.raises(UserError, match=r"no plan '.*nowhere.json'"):
        main([*given, f"--set=sharding.plan={tmp_path}/nowhere.json"])


def test_a_page_of_a_plan_that_does_not_fit(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    huge = "plan.tables.product_id.rows=5_000_000_000"
    assert main([*arguments(tmp_path, huge), "--cluster", "1x1xL4", "--html", str(page)]) == 3
    assert "no plan fits" in page.read_text()


def test_one_that_does_not_fit_beside_one_that_does(tmp_path: Path, capsys: Printed) -> None:
    clusters = ["--cluster", "2x8xH100", "--cluster", "1x1xL4"]
    given = arguments(tmp_path, "plan.tables.product_id.rows=500_000_000")
    assert main([*given, *clusters]) == 3
    both = capsys.readouterr()
    assert "no fit" in both.out
    reason = "the tables do not fit on 1x1xL4-24GB: no place for table 'product_id' (500,000,000 x 64 float32)"
    assert reason in both.err


def test_why_a_table_lies_so(tmp_path: Path, capsys: Printed) -> None:
    found = planned(capsys, *arguments(tmp_path), "--cluster", "2x8xH100", "--explain", "product_id")
    (explained,) = found["explained"]
    chosen = next(table for table in found["tables"] if table["name"] == "product_id")
    ways = explained["ways"]
    assert (explained["table"], explained["wish"], explained["without_wish_ms"]) == ("product_id", "auto", None)
    assert (ways[0]["sharding_type"], ways[0]["chosen"]) == (chosen["sharding_type"], True)
    assert ways[0]["busiest_ms"] == pytest.approx(found["summary"]["busiest_ms"])
    kinds = {(way["sharding_type"], way["kernel"]) for way in ways}
    assert {("data_parallel", "dense"), ("grid_shard", "fused"), ("table_wise", "fused_uvm_caching")} <= kinds
    for way in ways:
        if not way["refused"] and way["busiest_ms"] is not None:
            assert way["busiest_ms"] >= ways[0]["busiest_ms"] * 0.98, "a way that is open and better would be taken"
    columns = next(way for way in ways if way["sharding_type"] == "column_wise" and way["kernel"] == "fused")
    assert "each block of columns would keep its own sum" in columns["refused"]


def test_what_a_wish_costs(tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    given = arguments(tmp_path, "sharding.tables.product_id=row_wise")
    found = planned(capsys, *given, "--cluster", "2x8xH100", "--explain", "all")
    assert len(found["explained"]) == len(found["tables"])
    wished = next(one for one in found["explained"] if one["table"] == "product_id")
    assert wished["wish"] == "row_wise"
    assert wished["without_wish_ms"] < found["summary"]["busiest_ms"]
    assert main([*given, "--cluster", "2x8xH100", "--explain", "product_id"]) == 0
    said = capsys.readouterr().out
    assert "why 'product_id' lies so (the config says 'row_wise')" in said
    assert f"with 'auto' for this table the busiest rank would take {wished['without_wish_ms']:.4g} ms" in said


def test_how_two_plans_differ(tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    for file, cluster in zip(files, ("2x8xH100", "1x8xH100"), strict=True):
        assert main([*arguments(tmp_path), "--cluster", cluster, "--output", file]) == 0
    capsys.readouterr()
    assert main(["diff", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["what"] for one in found["supposed"]} == {"cluster"}
    assert "busiest rank, ms" in {one["what"] for one in found["takes"]}
    assert all(one["first"] != one["second"] for one in found["tables"])
    assert main(["diff", *files]) == 0
    said = capsys.readouterr().out
    assert "2x8xH100-80GB" in said
    assert "tables: product_id" in said
    raw = json.loads(Path(files[1]).read_text())
    rows = next(table for table in raw["tables"] if table["sharding_type"] == "row_wise")
    for shard, rank in zip(rows["shards"], (1, 0, 2, 3, 4, 5, 6, 7), strict=True):
        shard[0] = rank
    Path(files[0]).write_text(json.dumps(raw))
    assert main(["diff", *files]) == 0
    said = capsys.readouterr().out
    assert f"tables: {rows['name']}" in said, "pieces that change places"
    assert "row_wise on 8" in said
    assert "of 0" not in said
    assert main(["diff", files[0], files[0]]) == 0
    assert capsys.readouterr().out == "no difference\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--cluster", "2x8xV100"], "no cluster '2x8xV100'"),
        (["--explain", "toknes"], "--explain toknes: the model has no such table: tokens, product_id, category, brand"),
        (["--set=plan.tables.toknes.rows=3"], "plan.tables names ['toknes'], which are no tables of the dataset"),
        (["--set=plan.tables.brand.rows=0"], "plan.tables.brand.rows = 0: must be at least 1"),
        (["--set=plan.tables.brand.rows=1.5"], "plan.tables.brand.rows"),
        (["--set=dataset.tables.brand.dim=0"], "tables.brand.dim: 0 is not a positive multiple of 4"),
        (["--set=dataset.tables.brand.dim=7"], "tables.brand.dim: 7 is not a positive multiple of 4"),
        (["--set=plan.clutser=CPU"], "plan.clutser"),
        (["--set=sharding.tables.product_id=grid", "--cluster", "1x8xH100"], "take 'column_wise'"),
        (["--set=sharding.reserve=0.95"], "sharding.reserve = 0.95: must be at least 0 and at most 0.9"),
        (["--set=model.temperatures.buy.initial=0.1"], "model.temperatures names 'buy'"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, given: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        main([*arguments(tmp_path), *given])
    assert said in str(error.value)
    assert error.value.exit_code == 2


def test_no_dataset_and_no_counts(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        main(["launch/demo.toml", f"--set=dataset.path={tmp_path}/nowhere"])
    assert str(error.value) == (
        f"no prepared dataset at '{tmp_path}/nowhere', and without one planning needs plan.tables.tokens.rows, "
        "plan.tables.product_id.rows, plan.tables.category.rows, plan.tables.brand.rows, plan.tables.tokens.lookups: "
        "prepare it, or set these keys"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "holds no plan"),
        ("[]", "holds no plan"),
        ('{"format": 9}', "is a plan of format 9, this version reads 1"),
        ('{"format": 1}', "holds no plan (model: Field required)"),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UserError) as error:
        main(["diff", str(tmp_path), str(tmp_path)])
    assert said in str(error.value)
    with pytest.raises(UserError, match=r"no plan '.*nowhere.json'"):
        main(["diff", str(tmp_path / "nowhere.json"), str(tmp_path)])
