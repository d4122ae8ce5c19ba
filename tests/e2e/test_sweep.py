"""A sweep on the tiny dataset, from its file to its results: trials that finish, are pruned and fail; stopped, it goes
on as if it had not been."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.ranks import run_on_ranks
from tests.tiny import tiny_schema
from tests.tiny_run import BASE, StoppedError, here, logged, stopping, write_tiny_dataset
from torchrec_mt.config import check_config, config_to_json, load_config, open_dataset
from torchrec_mt.data.dataset import declaration_json
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import UserError
from torchrec_mt.holding import Hold
from torchrec_mt.runs import RunFolder
from torchrec_mt.sweep import main
from torchrec_mt.training.trained import load_run_model
from torchrec_mt.workflows.sweep import run_sweep
from torchrec_mt.workflows.sweep_config import load_sweep
from torchrec_mt.workflows.toml_text import toml_lines

RATES = "[0.1, 1e-9, 1e25]"
"""One that learns, one that does not, one with which the loss is soon no number."""


def without_none(value: Any) -> Any:
    """What TOML can say of a tree."""
    if isinstance(value, dict):
        return {name: without_none(inner) for name, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_tiny_dataset(folder / "data")
    what = {"name": "tiny", "path": str(folder / "data"), "source": {"kind": "synthetic_shop"}}
    tree = without_none(BASE | {"dataset": declaration_json(tiny_schema()) | what})
    (folder / "base.toml").write_text("\n".join(toml_lines(tree)))
    return folder / "base.toml"


def written(base: Path, output: Path, *, trials: int = 4) -> str:
    file = output.with_suffix(".toml")
    file.write_text(
        f"""
goal = "A rate that learns"
base = ["{base}"]
output = "{output}"
trials = {trials}
seed = 3
pruning = {{ kind = "median", startup = 1, warmup = 0 }}

[keys]
"optim.table_rate" = {{ kind = "one_of", values = {RATES} }}
"optim.dense_rate" = {{ kind = "float", low = 1e-9, high = 1e-8 }}
"""
    )
    return str(file)


def results(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found


def essence(output: Path) -> list[tuple[Any, ...]]:
    """Of each trial all but its times and its place."""
    keys = ("trial", "state", "value", "values", "steps")
    return [tuple(one[key] for key in keys) for one in results(output)["trials"]]


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that was not stopped."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert main([written(base, output), "--json"]) == 0
    return output


def test_a_sweep(base: Path, whole: Path) -> None:
    found = results(whole)
    assert {one["state"] for one in found["trials"]} == {"complete", "pruned", "failed"}
    for one in found["trials"]:
        rate, run = one["values"]["optim.table_rate"], Path(one["run"])
        assert one["state"] == {0.1: "complete", 1e-9: "pruned", 1e25: "failed"}[rate]
        if one["state"] == "failed":
            assert "no finite number" in one["why"]
            continue
        told = json.loads((run / "training.json").read_text())
        assert (told["steps"], told["interrupted"]) == (one["steps"], False)
        assert (run / "checkpoints" / f"step-{one['steps']:010}").is_dir()
        if one["state"] == "complete":
            chosen = [line["chosen"] for line in logged(run) if line["kind"] == "valid"]
            assert (one["steps"], one["value"]) == (12, max(chosen))
        else:
            assert one["steps"] == 3
    best = found["best"]
    assert best["value"] == max(one["value"] for one in found["trials"] if one["state"] == "complete")
    assert load_config([base, whole / "best.toml"]) == load_sweep(str(whole.with_suffix(".toml"))).config(
        {key: repr(value) for key, value in best["values"].items()}
    )
    assert json.loads(config_to_json(load_config([base, whole / "best.toml"]))) == json.loads(
        (Path(best["run"]) / "config.json").read_text()
    )
    for one in found["trials"]:
        if one["state"] != "failed":
            assert is_judged(one["run"])


def is_judged(path: str) -> bool:
    """Whether programs of runs find the model of this one."""
    run = RunFolder.open(path)
    config = check_config(run.config_json(), where=path)
    dataset, schema = open_dataset(config)
    with runtime(config.runtime) as one:
        model = load_run_model(
            run, dataset, schema, config.model, config.loss, config.sharding, config.checkpoint, runtime=one
        )
    return model is not None


def test_it_goes_on(base: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    file = written(base, output)
    with stopping("term", 5):
        assert main([file]) == 0
    assert "asked to end; to go on from" in capsys.readouterr().err
    assert not (output / "results.json").exists()
    trial = next(output.glob("trial-*"))
    assert json.loads((trial / "training.json").read_text())["interrupted"]
    held = Hold(output, str(output))
    with pytest.raises(UserError, match="is being trained by process"):
        main([file])
    held.release()
    with stopping("fail", 8), pytest.raises(StoppedError):  # as a killed program would be
        main([file])
    assert main([file, "--json"]) == 0
    assert essence(output) == essence(whole)
    for one in results(whole)["trials"]:
        if one["state"] != "failed":
            assert logged(output / Path(one["run"]).name) == logged(Path(one["run"]))
    # What is there is kept; more trials may be added.
    before = {file: file.stat().st_mtime_ns for file in output.glob("trial-*/**/*") if file.is_file()}
    assert main([written(base, output, trials=5), "--json"]) == 0
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert essence(output)[:4] == essence(whole)
    assert len(essence(output)) == 5


def test_no_trial_begins_late_and_none_finished_is_a_failure(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(base, tmp_path / "out")
    Path(file).write_text(f"timeout_minutes = 0.0\n{Path(file).read_text()}")
    assert main([file]) == 1
    assert "trials: none" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("trial-*"))


def test_a_mistake_of_all_trials_is_none_of_each(base: Path, tmp_path: Path) -> None:
    (tmp_path / "nowhere.toml").write_text(base.read_text().replace('data"', 'nowhere"'))
    with pytest.raises(UserError, match="no prepared dataset at"):
        main([written(tmp_path / "nowhere.toml", tmp_path / "out")])


def test_trials_on_another_dataset_are_not_compared(base: Path, tmp_path: Path) -> None:
    """The same config, the same path, but prepared anew."""
    output, data = tmp_path / "out", tmp_path / "data"
    write_tiny_dataset(data)
    (tmp_path / "base.toml").write_text(base.read_text().replace(str(base.parent / "data"), str(data)))
    assert main([written(tmp_path / "base.toml", output, trials=1), "--json"]) == 0
    shutil.rmtree(data)
    write_tiny_dataset(data, digest="another")
    with pytest.raises(UserError, match=r"prepared anew since \(digest tiny, now another\)"):
        main([written(tmp_path / "base.toml", output, trials=2), "--json"])
    assert not (output / "trial-0001").exists()


def test_a_full_disk_is_no_fault_of_a_trial(
    base: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial goes on with the next call, as if there had been room."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("torchrec_mt.training.checkpoints.files.Files.write", full)
        with pytest.raises(UserError, match="checkpoint of step 3 cannot be written"):
            main([written(base, output), "--json"])
    assert not (output / "trial-0001").exists()
    assert main([written(base, output), "--json"]) == 0
    assert essence(output) == essence(whole)


def mistaken_on_ranks(file: str) -> dict[str, Any]:
    def report(*_: object) -> bool:
        raise ValueError("of Optuna, [/on] the main rank")

    with patch("torchrec_mt.workflows.sweep_study.Study.report", report):
        return sweep_on_ranks(file)


def test_what_optuna_raises_is_raised_on_all_ranks(base: Path, tmp_path: Path) -> None:
    """In the midst of a training, where the other rank waits for the answer."""
    file = written(base, tmp_path / "out", trials=2)
    first, second = run_on_ranks(2, mistaken_on_ranks, file)
    assert first == second
    mistaken, diverged = first["trials"]
    assert (mistaken["state"], mistaken["why"]) == ("failed", "of Optuna, [/on] the main rank")
    assert (diverged["state"], "no finite number" in diverged["why"]) == ("failed", True)


def sweep_on_ranks(file: str) -> dict[str, Any]:
    return json.loads(json.dumps(run_sweep(load_sweep(file), here(), show=False)))


def test_all_ranks_stop_together(base: Path, tmp_path: Path) -> None:
    file = written(base, tmp_path / "out", trials=3)
    first, second = run_on_ranks(2, sweep_on_ranks, file)
    assert first == second
    assert [(one["state"], one["steps"]) for one in first["trials"]] == [
        ("complete", 12),
        ("failed", None),
        ("pruned", 3),
    ]
