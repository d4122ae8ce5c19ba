"""Under torchrun: what it ends, it ends with a checkpoint; what it starts again goes on, also with fewer ranks."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import STEPS, free_port, newest, resumed, small, state_after
from tests.launched import Agent

Uninterrupted = Callable[[int], dict[str, Any]]


def test_a_rank_that_dies_is_started_again(debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """Both are, and go on from the newest checkpoint; the other one told what it saw."""
    run = tmp_path / "run"
    options = ["--standalone", "--nproc_per_node=2", "--max-restarts=1", "--monitor-interval=0.1"]
    agent = Agent(tmp_path / "said", options, [*small(debug_shop), f"--output={run}"])
    agent.until(lambda: newest(run) >= 3)
    agent.ranks()[1].kill()
    assert agent.wait() == 0, agent.said
    assert "error: rank 0: another rank has ended, or does not answer (" in agent.said
    assert "goes on after step " in agent.said
    assert f"trained {STEPS} steps" in agent.said
    assert state_after(run, STEPS) == uninterrupted(2)


@pytest.mark.slow
def test_before_the_first_checkpoint_it_begins_again(
    debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["--standalone", "--nproc_per_node=2", "--max-restarts=1", "--monitor-interval=0.1"]
    agent = Agent(tmp_path / "said", options, [*small(debug_shop, "checkpoint.every=0"), f"--output={run}"])
    agent.until(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size)
    agent.ranks()[0].kill()
    assert agent.wait() == 0, agent.said
    assert newest(run) == STEPS
    assert state_after(run, STEPS)["log"] == uninterrupted(2)["log"]


@pytest.mark.slow
def test_a_machine_that_is_gone(debug_shop: Path, tmp_path: Path) -> None:
    """Two machines with a rank each; one vanishes, the other goes on alone, on the same batches."""
    run, port = tmp_path / "run", free_port()
    options = [
        "--nnodes=1:2",
        "--nproc_per_node=1",
        "--max-restarts=3",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=localhost:{port}",
        "--rdzv-id=shop",
        "--monitor-interval=0.1",
    ]
    # Of a machine that is gone nothing is heard for two seconds; the first time, wait for the second one.
    timing = "last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=2"
    arguments = [*small(debug_shop), f"--output={run}"]
    first = Agent(tmp_path / "first", [*options, f"--rdzv-conf=is_host=1,{timing}"], arguments)
    second = Agent(tmp_path / "second", [*options, f"--rdzv-conf=is_host=0,{timing}"], arguments)
    first.until(lambda: newest(run) >= 3)
    second.kill_machine()
    assert first.wait() == 0, first.said
    assert "goes on after step " in first.said
    assert newest(run) == STEPS
    commit = json.loads((run / f"checkpoints/step-{STEPS:010}/checkpoint.json").read_text())
    assert commit["ranks"] == 1
    [state] = (run / f"checkpoints/step-{STEPS:010}").glob("state.*.json")
    assert json.loads(state.read_text())["state"]["reader"]["lanes"] == 2


@pytest.mark.slow
def test_sigterm_to_the_launcher(debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    """It passes it on, and waits for the ranks; its own exit code is that of a job that was stopped."""
    run = tmp_path / "run"
    options = ["--standalone", "--nproc_per_node=2", "--monitor-interval=0.1"]
    agent = Agent(tmp_path / "said", options, [*small(debug_shop), f"--output={run}"])
    agent.until(lambda: newest(run) >= 2)
    agent.send(signal.SIGTERM)
    assert agent.wait(20) == 1
    assert "asked to end: stopped after step " in agent.said
    assert newest(run) < STEPS
    resumed(tmp_path / "again", run, ranks=2)
    assert state_after(run, STEPS) == uninterrupted(2)
