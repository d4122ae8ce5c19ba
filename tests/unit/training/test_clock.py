"""Where a step's time goes: phases add up to the step, each to its own phase, and they stand in the log."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_on_ranks
from tests.tiny import write_tiny
from tests.tiny_trainer import tiny_batches, tiny_trainer
from torchrec_mt.batch import Batch
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.training import clock as clock_module
from torchrec_mt.training.clock import PHASES, StepClock, over_ranks
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


def test_phases_over_ranks_by_hand() -> None:
    assert over_ranks({"data": [4.0, 1.0, 9.0, 2.0], "loss": [5.0, 7.0, 7.0, 6.0]}) == {
        "ms_min/data": 1.0,
        "ms_median/data": 3.0,
        "ms_max/data": 9.0,
        "slowest/data": 2,
        "ms_min/loss": 5.0,
        "ms_median/loss": 6.5,
        "ms_max/loss": 7.0,
        "slowest/loss": 1,
    }
    assert over_ranks({"data": [4.0], "loss": [5.0]}) == {}, "one rank has none to be compared with"


def with_a_straggler(folder: str) -> list[dict[str, float]]:
    """Trains on this rank, of which the last reads slowly. Returns its lines of the log."""
    rank, size = dist.get_rank(), dist.get_world_size()

    def slow() -> Iterator[Batch]:
        for batch in tiny_batches(dataset, rank=rank, world_size=size):
            if rank == size - 1:
                time.sleep(0.3)
            yield batch

    dataset = PreparedDataset.open(folder)
    lines: list[Metrics] = []
    here = Runtime(rank, size, torch.device("cpu"))
    trainer = tiny_trainer(
        dataset, Path(folder) / "run", here, log=lambda step, kind, values: lines.append(values), log_every=2
    )
    trainer.run(slow(), 4)
    return [values for values in lines if "ms/data" in values]


def test_a_straggler_is_seen_and_only_the_main_rank_logs(tmp_path: Path) -> None:
    write_tiny(tmp_path / "data")
    first, second = run_on_ranks(2, with_a_straggler, str(tmp_path / "data"))
    assert second == []
    assert len(first) == 3
    for values in first[1:]:  # in the first step every reader starts
        assert values["slowest/data"] == 1
        assert values["ms_max/data"] - values["ms_min/data"] > 100
        for phase in PHASES:
            low, middle, high = (values[f"{name}/{phase}"] for name in ("ms_min", "ms_median", "ms_max"))
            assert middle == pytest.approx((low + high) / 2)
            assert values[f"ms/{phase}"] in (low, high), "rank 0 is one of the two"
        # The first rank waits for the other in a collective: there it is the slowest.
        waits = max(PHASES, key=lambda phase: values[f"ms_max/{phase}"] * (values[f"slowest/{phase}"] == 0))
        assert values[f"ms_max/{waits}"] - values[f"ms_min/{waits}"] > 100
