"""A training that is tracked by MLflow, and one whose tracker is not there: both are what they are without."""

import json
from pathlib import Path

import pytest

from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.train import main as train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


def trained(root: Path, run: Path, uri: str, *flags: str) -> int:
    tracking = f"trainer.tracking={{ kind = 'mlflow', uri = '{uri}', experiment = 'debug' }}"
    overrides = [*debug_overrides(root), "trainer.steps=4", "trainer.validations=1", "trainer.log_every=1", tracking]
    return train([*FILES, *(f"--set={override}" for override in overrides), "--output", str(run), *flags])


def test_mlflow_has_what_metrics_jsonl_has(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"file:{tmp_path}/mlflow"
    assert trained(root, tmp_path / "run", uri, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["steps"] == 4
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    kept = json.loads((tmp_path / "run/tracking.json").read_text())
    assert kept.items() >= {"kind": "mlflow", "uri": uri, "experiment": "debug"}.items()
    found = client.get_run(kept["run_id"])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    dataset = json.loads((tmp_path / "run/dataset.json").read_text())
    assert found.data.tags["dataset_digest"] == dataset["digest"]
    assert found.data.tags["version.torch"].startswith("2.13")
    assert found.data.params["trainer.steps"] == "4"
    assert found.data.params["trainer.tracking.experiment"] == "debug"
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    for line in lines:
        step, kind = line.pop("step"), line.pop("kind")
        for name, value in line.items():
            history = client.get_metric_history(kept["run_id"], f"{kind}/{name.replace('@', '_at_')}")
            assert value in [point.value for point in history if point.step == step], name


def test_a_tracker_that_is_not_there(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained(root, tmp_path / "run", "http://127.0.0.1:9") == 0
    captured = capsys.readouterr()
    assert captured.err.count("warning: mlflow at 'http://127.0.0.1:9' fails") == 1
    assert "Traceback" not in captured.err
    assert not (tmp_path / "run/tracking.json").exists()
    assert "trained 4 steps" in captured.out
    # Where there is no terminal, a line for the first step and one for the last.
    said = [line for line in captured.err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in said] == ["1/4", "4/4"]
    assert all(" pairs/s  waiting " in line and "  loss search " in line for line in said)
    assert said[1].endswith("  0:00:00 left")
