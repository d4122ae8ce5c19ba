"""SIGTERM: a checkpoint, exit code 0, and the same bits as if it had never come; twice, and the process ends."""

import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faulty import signalled, signalled_in_preparation, signalled_in_validation, slow
from tests.jobs import STEPS, Fault, Job, newest, resumed, small, state_after

Uninterrupted = Callable[[int], dict[str, Any]]
GRACE = 10.0
"""Seconds; Kubernetes and torchrun give 30 before they kill, spot instances 120."""


@pytest.mark.parametrize(
    ("ranks", "fault", "step"),
    [
        pytest.param(1, partial(signalled, signal.SIGTERM, 5, 0), 6, id="one process"),
        pytest.param(2, partial(signalled, signal.SIGTERM, 5, 1), 6, id="one of two"),
        pytest.param(2, signalled_in_validation, STEPS // 2 + 1, id="validation"),
        pytest.param(2, signalled_in_preparation, 1, id="preparation"),
    ],
)
def test_in_a_known_moment(
    debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path, ranks: int, fault: Fault, step: int
) -> None:
    """Asked after a step's loss, training ends after the next one."""
    run = tmp_path / "run"
    arguments = [*small(debug_shop, "checkpoint.every=0"), f"--output={run}"]
    ended = Job(tmp_path / "said", arguments, ranks=ranks, fault=fault).wait(30)
    assert [one.code for one in ended] == [0] * ranks, [one.err for one in ended]
    assert ended[0].out == (f"asked to end: stopped after step {step}, to go on: torchrec-mt train --resume {run}\n")
    assert newest(run) == step
    resumed(tmp_path / "again", run, ranks=ranks)
    assert state_after(run, STEPS) == uninterrupted(ranks)


def test_all_ranks_from_outside(debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = Job(tmp_path / "said", [*small(debug_shop), f"--output={run}"], ranks=2, fault=slow)
    job.until(lambda: newest(run) >= 2)
    job.send(signal.SIGTERM)
    ended = job.wait(GRACE)
    assert [one.code for one in ended] == [0, 0], [one.err for one in ended]
    assert "asked to end: stopped after step" in ended[0].out
    assert 2 < newest(run) < STEPS
    resumed(tmp_path / "again", run, ranks=2)
    assert state_after(run, STEPS) == uninterrupted(2)


def test_twice_ends_at_once(debug_shop: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fault = partial(signalled, signal.SIGTERM, 5, 0, times=2)
    [ended] = Job(tmp_path / "said", [*small(debug_shop), f"--output={run}"], fault=fault).wait(GRACE)
    assert ended.code == -signal.SIGTERM
    assert newest(run) in (3, 4)


def test_while_a_run_is_gone_on_with(
    whole_run: Callable[[int], Path], uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    """Before its first step: one step, a checkpoint."""
    run = shutil.copytree(whole_run(1), tmp_path / "run")
    shutil.rmtree(run / f"checkpoints/step-{STEPS:010}")
    assert newest(run) == STEPS - 1
    [ended] = Job(tmp_path / "said", ["--resume", str(run)], fault=signalled_in_preparation).wait()
    assert ended.code == 0, ended.err
    assert state_after(run, STEPS) == uninterrupted(1)
