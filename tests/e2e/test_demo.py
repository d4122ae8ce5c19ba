"""The demo itself: on every task the model beats every rival, and stays above its floor of the oracle's Recall@100."""

import json
from pathlib import Path

import pytest

from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.prepare import main as prepare
from torchrec_mt.train import main as train

FLOOR = {"search": 0.92, "similar": 0.93, "complement": 0.88}


@pytest.mark.timeout(1200)  # a minute and a half where nothing else runs
def test_demo(tmp_path: Path) -> None:
    place = f"--set=dataset.path={tmp_path / 'demo'}"
    run = str(tmp_path / "run")
    assert prepare(["launch/demo.toml", place]) == 0
    assert train(["launch/demo.toml", place, "--output", run]) == 0
    assert evaluate([run]) == 0
    tasks = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())["tasks"]
    for name, floor in FLOOR.items():
        systems = tasks[name]["systems"]
        model, oracle = systems.pop("model"), systems.pop("oracle")
        assert model["recall@100"] >= floor * oracle["recall@100"], (name, model, oracle)
        for rival, scores in systems.items():
            assert all(model[metric] > scores[metric] for metric in scores), (name, rival, scores, model)
            compared = tasks[name]["comparisons"][rival]
            assert all(found["low"] > 0 and found["p_holm"] < 0.05 for found in compared.values()), (
                name,
                rival,
                compared,
            )
        cold = tasks[name]["slices"]["target_training"]["cold"]["systems"]
        assert cold["model"]["recall@100"] > max(cold[rival]["recall@100"] for rival in systems), (name, cold)
