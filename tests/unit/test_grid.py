"""Experiments: what a grid file may say, what comes of runs that are there, and how it is told."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import made_grid
from tests.made_grid import Log, experiment, run_of
from torchrec_mt.compare import main
from torchrec_mt.errors import UserError
from torchrec_mt.reporting.grid import grid_markdown, verdicts
from torchrec_mt.reporting.grid_page import grid_page
from torchrec_mt.reporting.grid_verdicts import with_seeds
from torchrec_mt.retrieval.records import ABOUT
from torchrec_mt.retrieval.uncertainty import holm
from torchrec_mt.workflows.grid import begin
from torchrec_mt.workflows.grid_config import cells_of, load_grid

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
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "grid.toml").write_text(text.replace("OUTPUT", str(folder / "out")))
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
        (
            "trainer.steps=7",
            "trainer.stepps=7",
            "grid.toml, method 'plain': settings trainer.stepps=7: unknown key 'trainer.stepps': did you mean",
        ),
        ("model.dim=128", "model.dim=0", "grid.toml, method 'wide': settings model.dim=0: model.dim = 0: must be"),
        (
            "trainer.steps=7",
            "trainer.steps 7",
            "method 'plain': settings 'trainer.steps 7' is not of the form KEY=VALUE",
        ),
        (
            "model.dim=128",
            "runtime.seed=1",
            "methods.wide.settings = 'runtime.seed=1': must be without runtime.seed: that is what `seeds` says",
        ),
        (
            "trainer.steps=7",
            "evaluate.split=valid",
            "settings = 'evaluate.split=valid': must be without evaluate.split",
        ),
        ("seeds = [3, 5]", "seeds = [3, -1]", "grid.toml: seeds = -1: must be numbers from 0 to 4,294,967,295"),
        ("seeds = [3, 5]", "seeds = ['3']", "grid.toml: 'seeds.0' = '3': input should be a valid integer"),
        ("seeds = [3, 5]", "metrics = ['recall@10', 'recal@100']", "grid.toml: metrics.1: 'recal@100' is no metric"),
        (
            "seeds = [3, 5]",
            "metrics = ['mrr@10', 'mrr@10']",
            "metrics = ('mrr@10', 'mrr@10'): must be different metrics",
        ),
        ("launch/demo.toml", "launch/nowhere.toml", "grid.toml, method 'plain': no config file 'launch/nowhere.toml'"),
        ('output = "OUTPUT"', 'output = "s3://bucket/grid"', "output = 's3://bucket/grid': must be a folder here"),
        (
            "model.dim=128",
            "evaluate.max_anchors=7",
            "method 'wide': evaluate.max_anchors = 7, but that of 'plain'",
        ),
        ("model.dim=128", "dataset.path='elsewhere'", "method 'wide': dataset.path = 'elsewhere', but that of 'plain'"),
        ("model.dim=128", "runtime.threads=3", "method 'wide': runtime.threads = 3, but that of 'plain' is 0"),
        ("trainer.steps=7", "checkpoint.folder='there'", "checkpoint.folder = 'there': all runs would write there"),
    ],
)
def test_what_makes_no_experiment(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = written(tmp_path, (old, new))
    with pytest.raises(UserError) as error:
        cells_of(load_grid(file), file=file)
    assert said in str(error.value)


def test_a_method_that_is_none(tmp_path: Path) -> None:
    file = written(tmp_path)
    with pytest.raises(UserError, match=r"--only wid: .*grid.toml has no such method: choose of plain, wide, twins"):
        cells_of(load_grid(file), ["wid"], file=file)


@pytest.mark.parametrize(
    ("more", "left_out"),
    [
        (["runs/b"], "RUN_B"),
        (["--task", "search"], "--task"),
        (["--task", "a", "--metric", "mrr@10"], "--task, --metric"),
    ],
)
def test_what_an_experiment_would_ignore_is_refused(tmp_path: Path, more: list[str], left_out: str) -> None:
    with pytest.raises(UserError, match=f"grid.toml' is an experiment: .*: leave out {left_out}$"):
        main([written(tmp_path), *more])


@pytest.mark.parametrize("more", [["--only", "wide"], ["--jobs", "2"]])
def test_runs_have_no_methods(more: list[str]) -> None:
    with pytest.raises(UserError, match=rf"'runs/a' is no experiment \(GRID.toml\): leave out {more[0]}"):
        main(["runs/a", "runs/b", *more])


def test_an_experiment_without_its_dataset_is_not_begun(tmp_path: Path) -> None:
    nowhere = ('settings = ["trainer.steps=7"]', f'settings = ["dataset.path={tmp_path}/nowhere"]')
    with pytest.raises(UserError, match=r"grid.toml, method 'plain': no prepared dataset at '.*nowhere'"):
        main([written(tmp_path, nowhere)])
    assert not (tmp_path / "out").exists(), "what is fixed can still be mended"


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


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    return experiment(tmp_path)


def test_means_and_spread(results: dict[str, Any], tmp_path: Path) -> None:
    one = results["tasks"]["search"]["good"]["metrics"]["recall@100"]
    by_hand = []
    for seed in (0, 1):
        table = pq.read_table(tmp_path / f"cell-1/seed-{seed}/evaluation/anchors.parquet").to_pylist()
        mine = [row["recall@100"] for row in table if row["task"] == "search" and row["system"] == "model"]
        by_hand.append(float(np.mean(mine)))
    assert one["by_seed"] == {"0": pytest.approx(by_hand[0]), "1": pytest.approx(by_hand[1])}
    assert one["mean"] == pytest.approx(np.mean(by_hand))
    assert one["sd_over_seeds"] == pytest.approx(np.std(by_hand, ddof=1))


def test_a_mean_has_its_interval_over_anchors(results: dict[str, Any]) -> None:
    one = results["tasks"]["search"]["good"]["metrics"]["recall@100"]
    assert one["low"] < one["mean"] < one["high"] < one["low"] + 0.1


def test_one_seed_has_no_standard_deviation(tmp_path: Path) -> None:
    results = experiment(tmp_path, seeds=(4,))
    assert results["tasks"]["search"]["good"]["metrics"]["recall@100"]["sd_over_seeds"] is None
    text = grid_markdown(results)
    assert "±" not in text
    assert "one seed: nothing is known of another" in text
    assert "low" not in results["curves"]["loss"]["search"]["good"], "there is no band"


def test_a_method_with_fewer_seeds_is_marked(results: dict[str, Any]) -> None:
    results["tasks"]["search"]["good"]["num_seeds"] = 1
    text = grid_markdown(results)
    assert "|   good (1 of 2 seeds) | " in text
    assert "|   good | " in text


def test_a_mean_gain_says_of_how_many_tasks_it_is(results: dict[str, Any]) -> None:
    results["gain"]["good"]["all"]["num_tasks"] = 1
    text = grid_markdown(results)
    assert "| good (1 of 2 tasks) | " in text
    assert "over 1 task: better" in text
    assert "(1 of 2 tasks)" in grid_page(results)


def test_equal_time_says_of_how_many_seeds_it_is(results: dict[str, Any]) -> None:
    results["equal_time"]["methods"]["good"]["num_seeds"] = 1
    assert "| good (1 of 2 seeds) | " in grid_markdown(results)
    assert "(1 of 2 seeds)" in grid_page(results)


def test_one_method_is_compared_with_nothing(tmp_path: Path) -> None:
    results = experiment(tmp_path, methods=("plain",), failed=False)
    assert (results["gain"], results["tasks"]["search"].keys()) == ({}, {"plain"})
    text = grid_markdown(results)
    assert "Nothing can be compared: there are no two methods of which one is plain." in text
    assert "gain over" not in text


def test_no_difference_is_said_where_there_is_none(tmp_path: Path) -> None:
    text = grid_markdown(experiment(tmp_path, gain=0.0))
    assert "No difference: in Recall@100 no method can be told from plain on any task." in text
    assert "over 2 tasks: no difference, " in text


def test_all_cells_failed(tmp_path: Path) -> None:
    results = experiment(tmp_path, methods=())
    assert (results["tasks"], results["cost"], results["equal_time"]) == ({}, {}, None)
    assert "bad, seed 0, failed: the loss is no finite number" in grid_markdown(results)


def other_names(table: pa.Table) -> pa.Table:
    return with_column(table, "anchor", [f"{7 * int(anchor) % 200:04}" for anchor in table["anchor"].to_pylist()])


def more_answers(table: pa.Table) -> pa.Table:
    return with_column(table, "relevant", [relevant + 1 for relevant in table["relevant"].to_pylist()])


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def another_dataset(table: pa.Table) -> pa.Table:
    about = json.loads(table.schema.metadata[ABOUT]) | {"dataset": "another"}
    return table.replace_schema_metadata({ABOUT: json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_names, "task 'search': anchor '0001' has 2 right answers"),
        (more_answers, "task 'search': anchor '0000' has 1 right answers"),
        (another_dataset, "differ in their dataset digest (made and another)"),
    ],
)
def test_only_what_was_judged_on_the_same_is_paired(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_of_another(folder: Path, values: Mapping[str, np.ndarray], log: Log) -> Path:
        file = run_of(folder, values, log)
        if folder.parent.name == "cell-1":
            pq.write_table(change(pq.read_table(file)), file)
        return file

    monkeypatch.setattr(made_grid, "run_of", run_of_another)
    with pytest.raises(UserError) as error:
        experiment(tmp_path)
    assert said in str(error.value)
    assert "cell-0/seed-0' and" in str(error.value)


def test_beside_the_reference(results: dict[str, Any]) -> None:
    a, b = (
        results["tasks"][task]["good"]["metrics"]["recall@100"]["beside_reference"] for task in ("search", "similar")
    )
    assert a["difference"] == pytest.approx(0.1, abs=0.005)
    assert a["p_holm"] < 0.01
    assert b["p_holm"] > 0.05
    assert "beside_reference" not in results["tasks"]["search"]["plain"]["metrics"]["recall@100"]
    cold = results["tasks"]["similar"]["good"]["slices"]["target_training: cold"]
    assert (cold["num_anchors"], cold["difference"]) == (100, pytest.approx(-0.05, abs=0.005))
    assert (cold["low"], cold["high"]) == (pytest.approx(-0.05, abs=0.01), pytest.approx(-0.05, abs=0.01))
    assert cold["low"] < cold["difference"] < cold["high"]


def test_gains_are_of_trained_tasks_and_values_averaged_over_seeds(results: dict[str, Any], tmp_path: Path) -> None:
    assert results["gain"].keys() == {"good"}, "the reference gains nothing over itself"
    gain = results["gain"]["good"]
    assert gain["tasks"].keys() == {"search", "similar"}, "another way to score a task does not count twice"
    for task, one in gain["tasks"].items():
        ours, theirs = (results["tasks"][task][name]["metrics"]["recall@100"]["mean"] for name in ("good", "plain"))
        assert one["gain"] == pytest.approx(ours / theirs - 1)
        assert one["low"] < one["gain"] < one["high"]
    assert gain["all"]["gain"] == pytest.approx(np.mean([one["gain"] for one in gain["tasks"].values()]))
    assert gain["all"]["num_tasks"] == 2


def test_costs_and_failures(results: dict[str, Any]) -> None:
    cost = {"step_ms": 10.0, "steps": 100, "seconds": 1.0, "table_bytes": 2024, "dense_parameters": 100}
    assert results["cost"]["plain"] == cost
    assert results["cost"]["good"]["step_ms"] == 20.0
    assert results["failed"] == [{"method": "bad", "seed": 0, "why": "the loss is no finite number"}]


def test_machines_differ_by_their_accelerators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of one cannot be compared with those of the other."""

    def run_somewhere(folder: Path, values: Mapping[str, np.ndarray], log: Log) -> Path:
        file = run_of(folder, values, log)
        machine = json.loads((folder / "environment.json").read_text())
        machine["accelerator"] = {"cell-0": "Slow 1", "cell-1": "Fast 2"}[folder.parent.name]
        (folder / "environment.json").write_text(json.dumps(machine))
        return file

    monkeypatch.setattr(made_grid, "run_of", run_somewhere)
    assert experiment(tmp_path)["machines"] == {
        "Linux, 2 cores, Slow 1, torch 2.13, torchrec 1.8": ["plain"],
        "Linux, 2 cores, Fast 2, torch 2.13, torchrec 1.8": ["good"],
    }


def test_what_it_says(results: dict[str, Any]) -> None:
    said = "\n".join(verdicts(results))
    assert "good beside plain, Recall@100: over 2 tasks: better, +" in said
    assert "; search: better, +.1" in said
    assert "; similar: no difference, " in said
    assert "bad, seed 0, failed: the loss is no finite number" in said
    text = grid_markdown(results)
    for part in (
        "# Is it better?",
        "|   good | ",
        "▲",
        "≈",
        "where a method falls behind plain",
        "- good: model.dim=128",
        "In Recall@100, good is better than plain on search, search_by_words. In 1 of 3 comparisons",
        "## gain over plain, Recall@100",
        "## equal time, 1 s of training: valid split, Recall@100",
        "[results.html](results.html)",
        "- made on Linux, 2 cores, torch 2.13, torchrec 1.8: plain, good",
    ):
        assert part in text, part
    assert "cold target" in text


@pytest.mark.parametrize("file", sorted(Path("launch/grids").glob("*.toml")), ids=lambda file: file.stem)
def test_shipped_grids_are_experiments(file: Path) -> None:
    assert cells_of(load_grid(str(file)))


def test_what_decides_is_corrected_by_itself(results: dict[str, Any]) -> None:
    """Two trained tasks are two questions; the task scored as another, and other metrics, are not among them."""
    found = {
        task: methods["good"]["metrics"]["recall@100"]["beside_reference"] for task, methods in results["tasks"].items()
    }
    assert {task: one["decides"] for task, one in found.items()} == {
        "search": True,
        "similar": True,
        "search_by_words": False,
    }
    wanted = holm([found[task]["p_value"] for task in ("search", "similar")])
    assert [found[task]["p_holm"] for task in ("search", "similar")] == wanted
    assert found["search_by_words"]["p_holm"] == found["search_by_words"]["p_value"]


def test_with_how_many_seeds_a_difference_has_its_sign(results: dict[str, Any]) -> None:
    for methods in results["tasks"].values():
        for name in methods.keys() - {results["reference"]}:
            ours, theirs = (methods[one]["metrics"]["recall@100"] for one in (name, results["reference"]))
            beside = ours["beside_reference"]
            more = [ours["by_seed"][seed] - theirs["by_seed"][seed] for seed in ours["by_seed"]]
            assert beside["seeds"] == len(more) == 2
            assert beside["seeds_alike"] == sum(one * beside["difference"] > 0 for one in more)
    beside = {"difference": 0.1, "p_holm": 0.01, "seeds": 3, "seeds_alike": 2}
    assert with_seeds(beside) == ", with 2 of 3 seeds"
    assert with_seeds(beside | {"seeds_alike": 3}) == ", with every seed"
    assert with_seeds(beside | {"p_holm": 0.2}) == with_seeds(beside | {"seeds": 1, "seeds_alike": 1}) == ""
