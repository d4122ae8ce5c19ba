"""Where a step's time goes: phases add up to the step, each to its own phase, and they stand in the log."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny_trainer import tiny_batches, tiny_trainer
from torchrec_mt.batch import Batch
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.training import clock as clock_module
from torchrec_mt.training.clock import PHASES, StepClock
from torchrec_mt.training.step import Metrics


class Hands:
    """A clock turned by hand, in the place of the module `time`."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_marks_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands()
    monkeypatch.setattr(clock_module, "time", hands)
    clock = StepClock(torch.device("cpu"))
    hands.now = 100.0
    clock.mark("data")  # outside a step: nobody's
    for _ in range(2):
        clock.start()
        for phase, seconds in (("data", 1), ("loss", 2), ("data", 0.5)):
            hands.now += seconds
            clock.mark(phase)
        hands.now += 4
        clock.stop()
        hands.now += 1000  # between steps: a validation
        clock.mark("tables")
    assert clock.read() == dict.fromkeys(PHASES, 0.0) | {"data": 1500.0, "loss": 2000.0, "idle": 4000.0}
    assert clock.read() == dict.fromkeys(PHASES, 0.0), "starts anew"


def test_the_phases_of_a_step_sum_to_its_time(dataset: PreparedDataset, here: Runtime, tmp_path: Path) -> None:
    trainer, batches = tiny_trainer(dataset, tmp_path, here), tiny_batches(dataset)
    for step in range(3):
        trainer.steps.step(batches, step)
    trainer.steps.clock.read()
    start = time.perf_counter()
    for step in range(10):
        trainer.steps.step(batches, step)
    wall = 1000 * (time.perf_counter() - start) / 10
    phases = trainer.steps.clock.read()
    assert list(phases) == list(PHASES)
    assert all(value >= 0 for value in phases.values())
    assert all(phases[name] > 0 for name in PHASES)
    assert sum(phases.values()) == pytest.approx(wall, rel=0.05, abs=0.5)


def test_a_slow_reader_is_seen_as_waiting_for_data(dataset: PreparedDataset, here: Runtime, tmp_path: Path) -> None:
    def slow() -> Iterator[Batch]:
        for batch in tiny_batches(dataset):
            time.sleep(0.02)
            yield batch

    trainer = tiny_trainer(dataset, tmp_path, here)
    batches = slow()
    for step in range(3):
        trainer.steps.step(batches, step)
    assert trainer.steps.clock.read()["data"] >= 20


def test_every_logged_step_says_where_its_time_went(dataset: PreparedDataset, here: Runtime, tmp_path: Path) -> None:
    lines: list[tuple[int, str, Metrics]] = []
    trainer = tiny_trainer(
        dataset, tmp_path, here, log=lambda step, kind, values: lines.append((step, kind, values)), log_every=2
    )
    start = time.perf_counter()
    trainer.run((batch for batch in tiny_batches(dataset)), 6)
    wall = 1000 * (time.perf_counter() - start)
    train = [(step, values) for step, kind, values in lines if kind == "train"]
    assert [step for step, _ in train] == [1, 2, 4, 6]
    total = 0.0
    for (step, values), last in zip(train, [0, 1, 2, 4], strict=True):
        phases = {key: value for key, value in values.items() if key.startswith("ms/")}
        assert list(phases) == [f"ms/{phase}" for phase in PHASES]
        assert all(math.isfinite(value) for value in values.values())
        assert values["pairs_per_second"] == pytest.approx(60 / (sum(phases.values()) / 1000))
        total += (step - last) * sum(phases.values())
    assert total <= wall, "means over the steps since the last line"
