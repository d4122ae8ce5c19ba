"""Experiments: what a grid file may say, what comes of runs that are there, and how it is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mt.compare import main
from torchrec_mt.config import load_config
from torchrec_mt.errors import UserError
from torchrec_mt.reporting.grid import grid_markdown, verdicts
from torchrec_mt.workflows.grid import Done, begin
from torchrec_mt.workflows.grid_config import Cell, Grid, Method, cells_of, load_grid
from torchrec_mt.workflows.grid_results import grid_results

TEXT = """
question = "Is it better?"
base = ["launch/demo.toml"]
output = "OUTPUT"
reference = "plain"
seeds = [3, 5]
settings = ["trainer.steps=7"]

[methods.plain]

[methods.wide]
settings = ["model.dim=128"]

[methods.twins]
twins_of = "plain"
"""


def written(folder: Path, *changes: tuple[str, str]) -> str:
    text = TEXT.replace("OUTPUT", str(folder / "out"))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "grid.toml").write_text(text)
    return str(folder / "grid.toml")


def test_cells(tmp_path: Path) -> None:
    grid = load_grid(written(tmp_path))
    cells = cells_of(grid)
    assert [(cell.method, cell.seed) for cell in cells] == [
        *(("plain", 3), ("wide", 3), ("twins", 3)),
        *(("plain", 5), ("wide", 5), ("twins", 5)),
    ]
    assert cells[2].place == cells[0].place == tmp_path / "out/plain/seed-3"
    wide = cells[1].config
    assert (wide.model.dim, wide.trainer.steps, wide.runtime.seed) == (128, 7, 3)
    assert (wide.evaluate.baselines, wide.evaluate.metrics[0]) == ((), "recall@100")
    assert [cell.method for cell in cells_of(grid, ["wide"])] == ["wide", "wide"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('reference = "plain"', 'reference = "other"', "reference = 'other': must be one of the methods"),
        ('twins_of = "plain"', 'twins_of = "nobody"', "methods.twins.twins_of = 'nobody'"),
        ('twins_of = "plain"', 'twins_of = "twins"', "methods.twins.twins_of = 'twins'"),
        ("[methods.wide]", '[methods."a/b"]', "methods.a/b"),
        ("seeds = [3, 5]", "seeds = [3, 3]", "seeds = (3, 3): must be different numbers"),
        ("seeds = [3, 5]", "seed = 3", "unknown key 'seed'"),
        ("trainer.steps=7", "trainer.stepps=7", "method 'plain': launch/demo.toml: unknown key 'trainer.stepps'"),
        ("model.dim=128", "model.dim=0", "method 'wide': launch/demo.toml: model.dim = 0"),
        ("launch/demo.toml", "launch/nowhere.toml", "no config file 'launch/nowhere.toml'"),
    ],
)
def test_what_makes_no_experiment(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        cells_of(load_grid(written(tmp_path, (old, new))))
    assert said in str(error.value)


def test_one_run_alone_is_compared_with_nothing() -> None:
    with pytest.raises(UserError, match="compare 'runs/a' with what"):
        main(["runs/a"])


def test_what_is_fixed_stays_fixed(tmp_path: Path) -> None:
    begin(load_grid(written(tmp_path)))
    more = ("[methods.wide]", "[methods.wider]\nsettings = ['model.dim=256']\n\n[methods.wide]")
    begin(load_grid(written(tmp_path, more, ("seeds = [3, 5]", "seeds = [3, 5, 7]"))))
    begin(load_grid(written(tmp_path)))
    assert "wider" in json.loads((tmp_path / "out/grid.json").read_text())["methods"], "what was run is remembered"
    for change in (("trainer.steps=7", "trainer.steps=8"), ("model.dim=128", "model.dim=64")):
        with pytest.raises(UserError, match="is another experiment"):
            begin(load_grid(written(tmp_path, change)))


def run_of(folder: Path, values: dict[str, np.ndarray], *, ms: float) -> Path:
    """A run folder with what results are made of: per task a value of recall@100 for each anchor."""
    file = folder / "evaluation/anchors.parquet"
    file.parent.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {
            "task": task,
            "system": system,
            "anchor": f"{anchor:04}",
            "recall@100": float(value),
            "target_training": "cold" if anchor % 2 else "warm",
        }
        for system in ("model", "popularity")
        for task, value_B in values.items()
        for anchor, value in reversed(list(enumerate(value_B)))
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    held = [{"weights": 1000, "sums": 24, "dense": 400}, {"weights": 1000, "sums": 0, "dense": 400}]
    (folder / "held.json").write_text(json.dumps(held))
    lines = [{"step": step, "kind": "train", "ms/loss": ms, "ms/idle": 1.0} for step in (1, 50, 100)]
    lines.append({"step": 100, "kind": "valid", "a/recall@100": 0.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    """Two methods on two seeds: `good` is better on task a, alike on b, worse on cold anchors of b; one cell failed."""
    grid = Grid(
        question="Is it better?",
        base=("launch/demo.toml",),
        output=str(tmp_path),
        reference="plain",
        seeds=(0, 1),
        metrics=("recall@100",),
        methods={"plain": Method(), "good": Method(settings=("model.dim=128",)), "bad": Method()},
    )
    config, draw, done = load_config(["launch/demo.toml"]), np.random.default_rng(0), []
    base = {task: draw.random(200) * 0.5 for task in ("a", "b")}
    for seed in (0, 1):
        for method, gain in (("plain", 0.0), ("good", 0.1)):
            values = {task: base[task] + draw.normal(0, 0.01, 200) for task in base}
            values["a"] = values["a"] + gain
            values["b"] = values["b"] + gain * np.where(np.arange(200) % 2, -0.5, 0.5)
            cell = Cell(method, seed, None, config, tmp_path / method / f"seed-{seed}")
            done.append(Done(cell, (run_of(cell.place, values, ms=9.0 + gain * 100),)))
    done.append(Done(Cell("bad", 0, None, config, tmp_path / "bad"), failure="the loss is no finite number"))
    return grid_results(grid, done)


def test_means_and_spread(results: dict[str, Any], tmp_path: Path) -> None:
    one = results["tasks"]["a"]["good"]["metrics"]["recall@100"]
    by_hand = []
    for seed in (0, 1):
        table = pq.read_table(tmp_path / f"good/seed-{seed}/evaluation/anchors.parquet").to_pylist()
        mine = [row["recall@100"] for row in table if row["task"] == "a" and row["system"] == "model"]
        by_hand.append(float(np.mean(mine)))
    assert one["by_seed"] == {"0": pytest.approx(by_hand[0]), "1": pytest.approx(by_hand[1])}
    assert one["mean"] == pytest.approx(np.mean(by_hand))
    assert one["sd_over_seeds"] == pytest.approx(np.std(by_hand, ddof=1))


def test_beside_the_reference(results: dict[str, Any]) -> None:
    a, b = (results["tasks"][task]["good"]["metrics"]["recall@100"]["beside_reference"] for task in ("a", "b"))
    assert a["difference"] == pytest.approx(0.1, abs=0.005)
    assert a["p_holm"] < 0.01
    assert b["p_holm"] > 0.05
    assert "beside_reference" not in results["tasks"]["a"]["plain"]["metrics"]["recall@100"]
    cold = results["tasks"]["b"]["good"]["slices"]["target_training: cold"]
    assert (cold["num_anchors"], cold["difference"]) == (100, pytest.approx(-0.05, abs=0.005))
    assert results["gain"]["plain"] == 0
    assert 0.1 < results["gain"]["good"] < 0.3


def test_costs_and_failures(results: dict[str, Any]) -> None:
    assert results["cost"]["plain"] == {"step_ms": 10.0, "seconds": 1.0, "table_bytes": 2024, "dense_parameters": 100}
    assert results["cost"]["good"]["step_ms"] == 20.0
    assert results["failed"] == [{"method": "bad", "seed": 0, "why": "the loss is no finite number"}]


def test_what_it_says(results: dict[str, Any]) -> None:
    said = "\n".join(verdicts(results))
    assert "good beside plain, Recall@100: a: better, +0." in said
    assert "; b: no difference, " in said
    assert "bad, seed 0, failed: the loss is no finite number" in said
    text = grid_markdown(results)
    for part in (
        "# Is it better?",
        "|   good | ",
        "▲",
        "≈",
        "where a method falls behind plain",
        "- good: model.dim=128",
    ):
        assert part in text, part
    assert "cold target" in text


@pytest.mark.parametrize("file", sorted(Path("launch/grids").glob("*.toml")), ids=lambda file: file.stem)
def test_shipped_grids_are_experiments(file: Path) -> None:
    assert cells_of(load_grid(str(file)))
