"""What an experiment's runs logged: curves over steps, and how far methods come in the same time."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.made_grid import experiment
from torchrec_mt.workflows.grid_curves import POINTS, curves
from torchrec_mt.workflows.grid_logs import RunLog, equal_time, validated


def run_log(ms: float, valid: Iterable[Mapping[str, Any]], train: Iterable[Mapping[str, Any]] = ()) -> RunLog:
    valid = list(valid)
    return RunLog(train=list(train), valid=valid, steps=valid[-1]["step"], step_ms=ms, held=[])


def validations(task: str, *values: float) -> list[dict[str, Any]]:
    """One after every ten steps, by which the best is chosen as well."""
    return [{"step": 10 * at, f"{task}/recall@100": value, "chosen": value} for at, value in enumerate(values, 1)]


def test_a_curve_is_the_mean_of_its_seeds_and_its_band_their_range(tmp_path: Path) -> None:
    results = experiment(tmp_path)
    loss = results["curves"]["loss"]["search"]["good"]
    assert loss["steps"] == [1, 50, 100]
    assert loss["mean"] == pytest.approx([1.995, 1.505, 1.005])
    assert loss["low"] == pytest.approx([1.99, 1.5, 1.0])
    assert loss["high"] == pytest.approx([2.0, 1.51, 1.01])
    assert results["curves"]["valid"]["similar"]["plain"]["mean"] == pytest.approx([0.555, 0.505])
    assert results["curves"]["cosine"]["search/similar"]["plain"]["mean"] == pytest.approx([0.195, -0.05, -0.3])
    assert results["curves"]["weight"]["search"]["good"]["mean"] == pytest.approx([1.01, 1.5, 2.0])


def test_a_long_curve_is_told_by_the_means_of_its_parts() -> None:
    draw, steps = np.random.default_rng(1), 1037
    lines = [
        [{"step": 3 * at, "kind": "train", "loss/search": float(draw.random())} for at in range(1, steps + 1)]
        for _ in range(3)
    ]
    logs = {"one": {seed: [run_log(1.0, validations("search", 0.5), each)] for seed, each in enumerate(lines)}}
    found = curves(logs, None)["loss"]["search"]["one"]
    assert len(found["steps"]) == POINTS
    assert found["steps"][-1] == 3 * steps
    low = 0
    for at, last in enumerate(found["steps"]):
        high = last // 3
        means = [statistics.fmean(line["loss/search"] for line in each[low:high]) for each in lines]
        assert found["mean"][at] == pytest.approx(statistics.fmean(means), rel=1e-4)
        assert (found["low"][at], found["high"][at]) == pytest.approx((min(means), max(means)), rel=1e-4)
        low = high


def test_seeds_that_stopped_early_and_numbers_that_are_none() -> None:
    line = {"kind": "train", "loss/search": 1.0, "weight/search": 1.0}
    short = [{**line, "step": 1}, {**line, "step": 2}]
    long = [{**line, "step": 1}, {**line, "step": 2, "loss/search": float("nan")}, {**line, "step": 3}]
    logs = {"one": {at: [run_log(1.0, validations("search", 0.5), each)] for at, each in enumerate((short, long))}}
    found = curves(logs, "recall@100")
    assert found["loss"]["search"]["one"]["steps"] == [1]
    assert found["weight"] == {}, "weights that stay as they are say nothing"


def test_without_telemetry(tmp_path: Path) -> None:
    found = experiment(tmp_path, telemetry=False)["curves"]
    assert (found["cosine"], found["weight"]) == ({}, {})
    assert found["loss"].keys() == {"search", "similar"}


def test_equal_time_by_hand() -> None:
    """The slow one takes three times as long, so it has a third of its 30 steps."""
    fast, slow = validations("search", 0.4, 0.5, 0.45), validations("search", 0.3, 0.7, 0.9)
    logs = {
        "fast": {0: [run_log(2.0, fast)], 1: [run_log(2.0, fast)]},
        "slow": {0: [run_log(6.0, slow)], 1: [run_log(6.0, validations("search", 0.2, 0.8, 0.8))]},
    }
    found = equal_time(logs, "recall@100", "fast")
    assert found["seconds"] == pytest.approx(0.06)
    assert found["methods"]["fast"] == {
        "share": 1,
        "num_seeds": 2,
        "tasks": {"search": {"mean": 0.5, "sd_over_seeds": 0.0, "whole": 0.5}},
        "gain": None,
    }
    one = found["methods"]["slow"]
    assert one["share"] == pytest.approx(1 / 3)
    assert one["tasks"]["search"] == {
        "mean": pytest.approx(0.25),
        "sd_over_seeds": pytest.approx(statistics.stdev([0.3, 0.2])),
        "whole": pytest.approx(0.85),
    }
    assert one["gain"] == pytest.approx(0.25 / 0.5 - 1)


def test_equal_time_compares_the_seeds_that_both_have() -> None:
    """One seed is easier; the reference failed with it, which makes the others no better."""
    easy, hard = validations("search", 0.9), validations("search", 0.5)
    logs = {
        "reference": {0: [run_log(1.0, hard)]},
        "other": {0: [run_log(1.0, hard)], 1: [run_log(1.0, easy)]},
        "third": {1: [run_log(1.0, easy)]},
    }
    found = equal_time(logs, "recall@100", "reference")["methods"]
    assert found["other"]["tasks"]["search"]["mean"] == pytest.approx(0.7)
    assert found["other"]["gain"] == 0
    assert found["third"]["gain"] is None, "no seed in common"
    assert {name: one["num_seeds"] for name, one in found.items()} == {"reference": 1, "other": 2, "third": 1}


def test_equal_time_of_one_model_per_task() -> None:
    """Both twins take the same share of their steps, though one is slower and one stopped early."""
    one = [line | {"similar/recall@100": line["chosen"]} for line in validations("search", 0.4, 0.5)]
    twins = [
        run_log(2.0, validations("search", 0.1, 0.2, 0.3, 0.4)),
        run_log(6.0, validations("similar", 0.5, 0.6)),
    ]
    found = equal_time({"one": {0: [run_log(5.0, one)]}, "twins": {0: twins}}, "recall@100", "twins")
    assert found["seconds"] == pytest.approx(0.1)
    told = found["methods"]["twins"]
    assert told["share"] == pytest.approx(0.1 / (0.08 + 0.12))
    assert (told["tasks"]["search"]["mean"], told["tasks"]["similar"]["mean"]) == (0.2, 0.5)
    assert found["methods"]["one"]["gain"] == pytest.approx(((0.5 / 0.2 - 1) + (0.5 / 0.5 - 1)) / 2)


def test_the_kept_model_is_the_one_that_was_chosen_by_then() -> None:
    lines = validations("search", 0.4, 0.5, 0.6)
    lines[0]["chosen"], lines[2]["chosen"] = 0.9, float("nan")
    assert run_log(1.0, lines).kept() == lines[0]
    assert run_log(1.0, lines[1:2]).kept(0.5) is None


def test_no_validation_in_time_and_times_that_are_nearly_alike() -> None:
    quick, late = run_log(1.0, validations("search", 0.3, 0.4)), run_log(4.0, validations("search", 0.5, 0.6)[1:])
    near = replace(quick, step_ms=1.04)
    logs = {"quick": {0: [quick]}, "late": {0: [late]}, "near": {0: [near]}}
    found = equal_time(logs, "recall@100", "quick")["methods"]
    assert found["late"]["tasks"]["search"] == {"mean": None, "sd_over_seeds": None, "whole": 0.6}
    assert found["late"]["gain"] is None
    assert found["near"]["tasks"]["search"]["mean"] == 0.4
    assert found["near"]["share"] == pytest.approx(1 / 1.04)


def test_the_metric_that_all_validations_have() -> None:
    logs = {"one": {0: [run_log(1.0, validations("search", 0.5))]}}
    assert validated(logs, ["recall@500", "recall@100"]) == "recall@100"
    assert validated(logs, ["recall@500"]) is None
    assert validated({}, ["recall@100"]) is None
