"""kill -9 of one rank or of all: the job ends and says so, no checkpoint suffers, --resume goes on to the same bits."""

import random
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faulty import signalled
from tests.jobs import STEPS, Job, newest, resumed, small, state_after

Uninterrupted = Callable[[int], dict[str, Any]]


@pytest.mark.parametrize("guilty", [0, 1])
def test_one_of_two(debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path, guilty: int) -> None:
    """Rank 0 also holds the job's store."""
    run = tmp_path / "run"
    fault = partial(signalled, signal.SIGKILL, 13, guilty)
    ended = Job(tmp_path / "said", [*small(debug_shop), f"--output={run}"], ranks=2, fault=fault).wait(30)
    lost, left = ended[guilty], ended[1 - guilty]
    assert (lost.code, left.code) == (-signal.SIGKILL, 1)
    line = left.error
    assert line.startswith(f"error: rank {1 - guilty}: another rank has ended, or does not answer (")
    assert f"`torchrec-mt train --resume {run}` goes on from it" in line
    assert newest(run) in (11, 12), "that of 12 was being written in step 13"
    assert f"/checkpoints/step-{newest(run):010}'" in line
    resumed(tmp_path / "again", run, ranks=2)
    assert state_after(run, STEPS) == uninterrupted(2)


def killed_again_and_again(root: Path, folder: Path, chance: random.Random, *, times: int) -> list[Path]:
    """Runs whose ranks are all killed at any moment, so many times; whoever is done by then begins another one."""
    runs, before = list[Path](), STEPS
    for number in range(times):
        begins, said = before == STEPS, folder / f"said-{number}"
        if begins:
            runs.append(folder / f"run-{number}")
        run = runs[-1]
        command = [*small(root), f"--output={run}"] if begins else ["--resume", str(run)]
        job, seen = Job(said, command, ranks=2), 0
        job.until(lambda run=run: newest(run)) if begins else job.until(partial(_has_gone_on, job))
        deadline = time.monotonic() + chance.uniform(0, 0.2)
        while time.monotonic() < deadline:
            seen = newest(run)
        for rank in chance.sample(range(2), 2):
            job.send(signal.SIGKILL, rank)
        job.wait()
        assert begins or went_on_after(job.said(0)) == before
        before = newest(run)
        assert before >= seen, "a checkpoint that counted does no more"
    if before < STEPS:
        assert went_on_after(resumed(folder / "last", run, ranks=2)[0].err) == before
    return runs


def _has_gone_on(job: Job) -> bool:
    return "goes on after step" in job.said(0)


def went_on_after(said: str) -> int:
    found = re.search(r"goes on after step (\d+), from .*/step-0*(\d+)$", said, re.MULTILINE)
    assert found is not None, said
    assert found[1] == found[2]
    return int(found[1])


def test_all_at_any_moment(debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    for run in killed_again_and_again(debug_shop, tmp_path, random.Random(0), times=10):
        assert state_after(run, STEPS) == uninterrupted(2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_all_at_any_moment_often(debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path, seed: int) -> None:
    for run in killed_again_and_again(debug_shop, tmp_path, random.Random(seed), times=10):
        assert state_after(run, STEPS) == uninterrupted(2)
