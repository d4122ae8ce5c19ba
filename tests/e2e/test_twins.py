"""train -> twins on the debug shop: what is compared, what is kept, what goes on, what is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.shop import FILES, debug_overrides
from tests.tiny_run import logged, stopping
from torchrec_mt.compare import main as compare
from torchrec_mt.config import check_config
from torchrec_mt.data.dataset import MANIFEST
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import exit_code_of
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.prepare import main as prepare
from torchrec_mt.retrieval.uncertainty import holm
from torchrec_mt.runs import RunFolder
from torchrec_mt.train import main as train
from torchrec_mt.twins import main as twins
from torchrec_mt.workflows.training import train_here

pytestmark = pytest.mark.timeout(600)
TASKS = ["search", "similar", "complement"]
JUDGED_ONLY = "similar_again"
"""A task that is only evaluated, with the anchor side of `similar`."""
STEPS = 20
AGAIN = """{anchor = "product", candidate = "product", trained_as = "similar", pairs = {kind = "groups",
    path = "views.parquet", group = ["session_id"], item = "product_id", time = "time"}}""".replace("\n", "")
OVERRIDES = (
    f"dataset.tasks.{JUDGED_ONLY}={AGAIN}",
    f"trainer.steps={STEPS}",
    "trainer.validations=2",
    "trainer.validation_anchors=50",
    "evaluate.max_anchors=100",
    "checkpoint.every=4",
)
ANCHORS, METRICS = (f"evaluation/{name}-test-100-anchors-no-baselines" for name in ("anchors", "metrics"))


def settings(root: Path) -> list[str]:
    return [*FILES, *(f"--set={override}" for override in [*debug_overrides(root), *OVERRIDES])]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared dataset and a run that has its twins."""
    root = tmp_path_factory.mktemp("twins")
    assert prepare(settings(root)) == 0
    assert train([*settings(root), "--output", str(root / "run")]) == 0
    assert twins([str(root / "run")]) == 0
    return root


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run with its twins, to change."""
    return shutil.copytree(made / "run", tmp_path / "run")


def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "twins/comparison.json").read_text())


def trained(run: Path, task: str) -> dict[str, bytes]:
    """What a training leaves of a twin; not its judgement."""
    folder = run / "twins" / task
    files = [file for file in folder.rglob("*") if file.is_file() and "evaluation" not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert exit_code_of(lambda: twins(arguments)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err
    return output.err


def test_what_a_twin_has_in_common_with_the_run(made: Path) -> None:
    found, config = report(made / "run"), json.loads((made / "run/config.json").read_text())
    assert list(found["twins"]) == TASKS
    assert sum(twin["pairs_per_step"] for twin in found["twins"].values()) == config["reader"]["batch_size"]
    for task, twin in found["twins"].items():
        assert twin["tasks"] == ([task, JUDGED_ONLY] if task == "similar" else [task])
        assert twin["steps"] == {"unified": STEPS, "twin": STEPS}
        own = json.loads((made / "run/twins" / task / "config.json").read_text())
        assert (own["trainer"]["tasks"], own["trainer"]["steps"]) == ([task], STEPS)
        assert own["reader"]["batch_size"] == twin["pairs_per_step"]
        losses = [name for line in logged(made / "run/twins" / task) for name in line if name.startswith("loss/")]
        assert set(losses) == {f"loss/{task}"}
    plans = {task: json.loads((made / "run/twins" / task / "plan.json").read_text()) for task in TASKS}
    towers = {task: {table["name"] for table in plan["tables"]} for task, plan in plans.items()}
    assert towers["similar"] <= towers["search"]


def test_the_comparison_is_that_of_compare(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Task by task by the other program; and the unified model's means are those that `evaluate` finds."""
    found, p_values = report(made / "run"), {}
    assert (found["split"], found["max_anchors"], found["num_comparisons"]) == ("test", 100, 16)
    assert evaluate([str(made / "run"), "--json", "--baselines", "popularity"]) == 0
    judged = json.loads(capsys.readouterr().out)["tasks"]
    for task, result in found["tasks"].items():
        twin = made / "run/twins" / task.removesuffix("_again")
        files = [f"{one}/{ANCHORS}.parquet" for one in (made / "run", twin)]
        assert compare([*files, "--task", task, "--json"]) == 0
        other = json.loads(capsys.readouterr().out)["tasks"][task]
        assert result["num_anchors"] == other["num_anchors"]
        for metric, one in result["metrics"].items():
            expected = other["metrics"][metric]
            assert one["unified"] == expected["first"]
            assert one["unified"] == pytest.approx(judged[task]["systems"]["model"][metric], rel=1e-12)
            assert one["twin"] == expected["second"]
            for key in ("difference", "low", "high", "p_value", "effect_size"):
                assert one[key] == expected[key]
            p_values[task, metric] = one["p_value"]
    assert list(found["tasks"]) == ["search", "similar", JUDGED_ONLY, "complement"]
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    for (task, metric), p_holm in corrected.items():
        assert found["tasks"][task]["metrics"][metric]["p_holm"] == p_holm


def test_a_twin_has_the_bits_of_a_training_by_itself(made: Path, tmp_path: Path) -> None:
    """`similar` was trained second in its process."""
    config = check_config(json.loads((made / "run/twins/similar/config.json").read_text()), where="twin")
    with runtime(config.runtime) as here:
        train_here(config, str(tmp_path / "alone"), here, show=False)
    assert logged(tmp_path / "alone") == logged(made / "run/twins/similar")
    # It is a run like any other.
    assert evaluate([str(tmp_path / "alone"), "--baselines", ""]) == 0
    own, beside = ((one / f"{METRICS}.json").read_text() for one in (tmp_path / "alone", made / "run/twins/similar"))
    assert own == beside
    assert list(json.loads(own)["tasks"]) == ["similar", JUDGED_ONLY]


def test_twins_that_are_there_are_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, found = {task: trained(run, task) for task in TASKS}, report(run)
    assert twins([str(run), "--tasks", "complement,search", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["tasks"]) == ["search", "complement"]
    assert told == report(run)
    for task in ("search", "complement"):
        told_metrics, metrics = (one["tasks"][task]["metrics"]["recall@10"] for one in (told, found))
        assert told_metrics["difference"] == metrics["difference"]
    for task in TASKS:
        now = trained(run, task)
        changed = [name for name in before[task] if now.get(name) != before[task][name]]
        assert changed in ([], ["training.json"]), "the copy of the run lies elsewhere"
        assert now.keys() == before[task].keys()


def test_a_run_of_another_config_has_other_twins(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {task: trained(run, task) for task in TASKS}
    edit(run / "config.json", lambda config: config["optim"].update(dense_rate=0.002))
    assert twins([str(run), "--tasks", "search"]) == 0
    said = capsys.readouterr().err
    assert "twin of search: up to 20 steps of" in said
    assert "kept" not in said
    assert trained(run, "search")["metrics.jsonl"] != before["search"]["metrics.jsonl"]
    assert json.loads((run / "twins/search/config.json").read_text())["optim"]["dense_rate"] == 0.002
    assert trained(run, "similar") == before["similar"]


def test_a_stopped_twin_goes_on(made: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "twins/similar")
    (run / "twins/comparison.json").unlink()
    with stopping("term", 7):
        assert twins([str(run), "--tasks", "similar"]) == 0
    assert capsys.readouterr().out == (
        f"asked to end: the twin of similar stopped after step 7, to go on: torchrec-mt twins {run}\n"
    )
    assert not (run / "twins/comparison.json").exists()
    assert not (run / "twins/similar/evaluation").exists()
    assert twins([str(run), "--tasks", "similar"]) == 0
    assert "goes on after step 7" in capsys.readouterr().err
    assert logged(run / "twins/similar") == logged(made / "run/twins/similar")
    one, other = (found["tasks"]["similar"]["metrics"]["recall@10"] for found in (report(run), report(made / "run")))
    assert (one["unified"], one["twin"]) == (other["unified"], other["twin"])


def test_two_ranks_train_and_judge_what_one_did(made: Path, run: Path) -> None:
    """The run was begun on one rank: its twins are read in one lane on any number of ranks."""
    shutil.rmtree(run / "twins")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "torchrec_mt.twins", str(run), "--tasks", "complement", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told == report(run)
    alone = report(made / "run")
    assert told["twins"]["complement"]["pairs_per_step"] == alone["twins"]["complement"]["pairs_per_step"]
    one, other = (found["tasks"]["complement"]["metrics"]["recall@100"] for found in (told, alone))
    assert one["unified"] == other["unified"]


def test_a_twin_takes_the_place_of_no_strangers_files(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "twins/search")
    (run / "twins/search").mkdir()
    (run / "twins/search/notes.txt").write_text("mine")
    assert "exists and is no run folder of ours" in refused([str(run)], capsys)
    assert (run / "twins/search/notes.txt").read_text() == "mine"


def test_twins_go_with_the_run(run: Path) -> None:
    assert RunFolder.create(run, overwrite=True).is_aside, "nothing strange lies in it"


def test_a_run_that_has_not_come_to_its_end(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run / "training.json", lambda training: training.update(steps=STEPS - 4))
    assert f"has taken 16 of its {STEPS} steps, its twins would take all" in refused([str(run)], capsys)
    edit(run / "config.json", lambda config: config["trainer"].update(patience=3))
    edit(run / "training.json", lambda training: training.update(interrupted=True))
    assert f"torchrec-mt train --resume {run}" in refused([str(run)], capsys)
    (run / "training.json").unlink()
    assert "has not come to its end (no training.json in it)" in refused([str(run)], capsys)


def test_a_run_that_began_with_anothers_weights(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "init.json").write_text("{}")
    assert "began with the weights of another run (init.json)" in refused([str(run)], capsys)


def test_tasks_that_cannot_have_a_twin(
    made: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"'{JUDGED_ONLY}' is no trained task of '{run}'" in refused([str(run), "--tasks", JUDGED_ONLY], capsys)
    assert "it is its own twin" in refused([str(run / "twins/search")], capsys)
    assert "the run has settled 'model.dim'" in refused([str(run), "--set", "model.dim=8"], capsys)
    assert "is no run folder" in refused([str(tmp_path)], capsys)

    data = shutil.copytree(made / "debug", tmp_path / "data")
    moved = [str(run), f"--set=dataset.path={data}"]
    for split, said in (
        ("test", "task 'search' has no pairs in the test split to be judged on: leave it out of --tasks"),
        ("valid", "task 'search' has no validation pairs, by which a twin's best step is chosen: leave it out"),
    ):
        edit(data / MANIFEST, lambda manifest, split=split: manifest["tasks"]["search"]["pairs"].update({split: 0}))
        assert said in refused(moved, capsys)

    edit(run / "config.json", lambda config: config["reader"].update(batch_size=200_000))
    text = refused([str(run), "--tasks", "similar"], capsys)
    assert "task 'similar' has " in text
    assert "a run on it alone refuses that; leave it out of --tasks" in text
