"""The run folder: atomic files, refusal of what is not ours, one log to two places."""

import json
from pathlib import Path

import pytest

from torchrec_mt.errors import UserError
from torchrec_mt.runs import MetricsLog, RunFolder, write_atomic


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.json"
    write_atomic(file, "one")
    write_atomic(file, "two")
    assert file.read_text() == "two"
    assert [child.name for child in file.parent.iterdir()] == ["a.json"]


def test_a_folder_that_is_no_run_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no run folder of ours"):
        RunFolder.create(tmp_path)
    with pytest.raises(UserError, match=r"no run folder \(no config.json"):
        RunFolder.open(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_earlier_run_is_replaced_only_on_request(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.start('{"a": 1}')
    (run.path / "model").mkdir()
    with pytest.raises(UserError, match="holds an earlier run: give another --output, or --overwrite"):
        RunFolder.create(tmp_path / "run")
    again = RunFolder.create(tmp_path / "run", overwrite=True)
    assert again.config_json() == {"a": 1}
    again.start('{"a": 2}')
    assert not (run.path / "model").exists()
    assert RunFolder.open(run.path).config_json() == {"a": 2}
    assert json.loads((run.path / "environment.json").read_text())["versions"]["torch"].startswith("2.13")


def test_metrics_go_to_jsonl_and_tensorboard(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    run.start("{}")
    log = MetricsLog(run)
    log.write(3, "train", {"loss/find": 0.5})
    log.close()
    assert json.loads((run.path / "metrics.jsonl").read_text()) == {"step": 3, "kind": "train", "loss/find": 0.5}
    assert list((run.path / "tensorboard").glob("events.*"))
