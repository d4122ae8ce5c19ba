"""A rank that hangs: the watchdog says which, where and since when, and the job ends within a bound."""

import signal
from functools import partial
from pathlib import Path

import pytest

from tests.faulty import slow, stuck_optimizer, stuck_reader
from tests.jobs import Fault, Job, newest, small
from torchrec_mt.training.watchdog import EXIT_CODE

SECONDS = 2.0


@pytest.mark.parametrize(
    ("fault", "place"),
    [
        (partial(stuck_reader, 7, 1), "rank 1 is stuck in phase 'data' of step 7"),
        (partial(stuck_optimizer, 7, 0), "rank 0 is stuck in phase 'optimizer' of step 7"),
    ],
)
def test_a_rank_is_stuck(debug_shop: Path, tmp_path: Path, fault: Fault, place: str) -> None:
    run = tmp_path / "run"
    arguments = [*small(debug_shop, f"trainer.stuck_seconds={SECONDS}"), f"--output={run}"]
    job = Job(tmp_path / "said", arguments, ranks=2, fault=fault)
    job.until(lambda: newest(run) == 6)
    ended = job.wait(3 * SECONDS + 5)
    codes = {one.code for one in ended}
    assert EXIT_CODE in codes
    assert codes <= {EXIT_CODE, 1}, "whoever is not ended by its watchdog has lost the other one"
    said = [line for one in ended for line in one.err.splitlines() if line.startswith("error: ")]
    assert any(f"training stands still: {place} for " in line for line in said), said
    assert any(f"(more than trainer.stuck_seconds = {SECONDS:g})" in line for line in said)
    assert newest(run) == 6


def test_a_stuck_rank_whose_store_is_gone(debug_shop: Path, tmp_path: Path) -> None:
    """Without a launcher nobody else would end it."""
    run = tmp_path / "run"
    arguments = [*small(debug_shop, f"trainer.stuck_seconds={SECONDS}"), f"--output={run}"]
    job = Job(tmp_path / "said", arguments, ranks=2, fault=partial(stuck_reader, 7, 1))
    job.until(lambda: newest(run) == 6)
    job.send(signal.SIGKILL, 0)
    [_, stuck] = job.wait(3 * SECONDS + 5)
    assert stuck.code == EXIT_CODE
    assert "this rank is stuck in phase 'data' of step 7 for " in stuck.err
    assert "what the others do cannot be asked any more" in stuck.err


def test_a_store_that_does_not_answer(debug_shop: Path, tmp_path: Path) -> None:
    """Whoever holds it is stuck as a whole: the others must not wait for its word."""
    run = tmp_path / "run"
    job = Job(
        tmp_path / "said",
        [*small(debug_shop, f"trainer.stuck_seconds={SECONDS}"), f"--output={run}"],
        ranks=2,
        fault=slow,
    )
    job.until(lambda: newest(run) == 6)
    job.send(signal.SIGSTOP, 0)
    job.until(lambda: "error: rank 1: training stands still: this rank is stuck in phase '" in job.said(1), seconds=10)
    job.send(signal.SIGKILL, 0)
    [_, other] = job.wait(5)
    assert other.code == EXIT_CODE
    assert "the job's store, in rank 0 or the launcher, is silent" in other.err
