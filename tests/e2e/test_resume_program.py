"""`train --resume` as a person meets it: what it says, what it refuses, what it leaves alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.errors import UserError
from torchrec_mt.train import main

STEPS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


def command(root: Path, run: Path, *overrides: str) -> list[str]:
    usual = (f"trainer.steps={STEPS}", "trainer.validations=2", "trainer.log_every=1", "trainer.validation_anchors=20")
    settings = [*debug_overrides(root), *usual, *overrides]
    return [*FILES, *(f"--set={override}" for override in settings), "--output", str(run)]


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main([*command(root, run), "--json"]) == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to go on with."""
    copy = shutil.copytree(finished, tmp_path / "run")
    told = copy / "training.json"  # it names the place
    told.write_text(told.read_text().replace(str(finished), str(copy)))
    return copy


def contents(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def edit_config(run: Path, **sections: dict[str, Any]) -> None:
    config = json.loads((run / "config.json").read_text())
    for name, changes in sections.items():
        config[name] |= changes
    (run / "config.json").write_text(json.dumps(config))


def log(run: Path, kind: str) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["kind"] == kind]


def test_a_finished_run_has_nothing_left(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert main(["--resume", str(run)]) == 0
    said = capsys.readouterr().out
    assert "nothing left to do" in said
    assert "it has taken 4 of 4 steps; raise trainer.steps or trainer.epochs to go on" in said
    assert main(["--resume", str(run), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["steps"], outcome["interrupted"]) == (4, False)
    assert contents(run) == before
    # Killed between its last checkpoint and its last word.
    (run / "training.json").unlink()
    assert main(["--resume", str(run), "--json"]) == 0
    after = {name: text for name, text in contents(run).items() if name != "training.json"}
    assert after == {name: text for name, text in before.items() if name != "training.json"}
    told = json.loads((run / "training.json").read_text())
    assert told == {name: value for name, value in outcome.items() if name != "nothing_left"}


def test_more_steps_go_on_and_are_validated(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--resume", str(run), "--set=trainer.steps=8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 8
    assert log(run, "train") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert log(run, "valid") == [2, 4, 8]
    assert json.loads((run / "config.json").read_text())["trainer"]["steps"] == 8
    # The new number is the run's own from now on.
    assert main(["--resume", str(run), "--json"]) == 0
    assert "it has taken 8 of 8 steps" in json.loads(capsys.readouterr().out)["nothing_left"]


def test_a_run_that_stopped_early_stays_so_until_patience_is_raised(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, still = tmp_path / "run", ("optim.dense_rate=0", "optim.table_rate=0")
    many = ("trainer.steps=8", "trainer.validations=4", "trainer.patience=1")
    assert main([*command(root, run, *still, *many), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    before = contents(run)
    assert main(["--resume", str(run), "--json"]) == 0
    assert "it stopped early at step 4" in json.loads(capsys.readouterr().out)["nothing_left"]
    assert contents(run) == before
    assert main(["--resume", str(run), "--json", "--set=trainer.patience=2"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 6


@pytest.mark.parametrize(
    "override",
    [
        "model.dim=8",
        "trainer.accumulate=2",
        'trainer.metric="mrr@10"',
        "trainer.validation_anchors=5",
        "runtime.seed=1",
        "optim.dense_rate=1",
        "reader.batch_size=8",
        'negatives.sources=[{kind = "in_batch"}]',
        "dataset.name=other",
    ],
)
def test_what_a_run_has_settled_is_refused(run: Path, override: str) -> None:
    before = contents(run)
    with pytest.raises(UserError, match=rf"the run has settled '{override.partition('=')[0]}'"):
        main(["--resume", str(run), f"--set={override}"])
    assert contents(run) == before


def test_what_else_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([str(FILES[0])], ["--output", "elsewhere"], ["--overwrite"], ["--init-from", str(run)]):
        with pytest.raises(SystemExit) as ended:
            main([*more, "--resume", str(run)])
        assert ended.value.code == 2
        assert capsys.readouterr().err.count("error:") == 1
    with pytest.raises(UserError, match="is no run folder"):
        main(["--resume", str(tmp_path)])
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=r"no checkpoint in '.*' to go on from: train without --resume"):
        main(["--resume", str(run)])


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"kind": "in_batch"}, {"kind": "uniform", "count": 3}], "saved position is one among other batches .*draws/"),
        (
            [{"kind": "in_batch"}, {"kind": "uniform", "count": 128}, {"kind": "memory", "warmup": 1}],
            "the checkpoint has memories of the tasks",
        ),
    ],
)
def test_other_negatives_written_into_the_config_are_refused(run: Path, sources: Any, message: str) -> None:
    edit_config(run, negatives={"sources": sources})
    before = contents(run)
    with pytest.raises(UserError, match=message):
        main(["--resume", str(run)])
    assert contents(run) == before


def test_another_state_of_the_dataset_is_refused(run: Path) -> None:
    (run / "dataset.json").write_text('{"digest": "another"}')
    with pytest.raises(UserError, match="was trained on another state of the dataset"):
        main(["--resume", str(run)])


def test_a_launchers_next_try_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    run = tmp_path / "run"
    assert main([*command(root, run), "--json"]) == 0
    capsys.readouterr()
    assert main([*command(root, run), "--json"]) == 0
    assert "nothing_left" in json.loads(capsys.readouterr().out)
    with pytest.raises(UserError, match=r"with another config \(model.dim differ\)"):
        main(command(root, run, "model.dim=8"))
    assert main([*command(root, run, "trainer.steps=5"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 5
    # The first try died before its first checkpoint.
    shutil.rmtree(run / "checkpoints")
    assert main([*command(root, run), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["steps"], "nothing_left" in outcome) == (4, False)
    assert log(run, "train") == [1, 2, 3, 4]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-8")
    with pytest.raises(UserError, match="holds an earlier run"):
        main(command(root, run))
