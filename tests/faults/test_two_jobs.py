"""Two jobs on one run: the second is refused, or waits where it is the same job's next try; a kill locks nothing."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faulty import slow
from tests.jobs import STEPS, Job, newest, resumed, small, state_after
from tests.tiny_run import tiny_config
from torchrec_mt.config import config_to_json
from torchrec_mt.holding import LOCK
from torchrec_mt.runs import MARK, PARTS, RunFolder
from torchrec_mt.storage import Output
from torchrec_mt.workflows import training

Uninterrupted = Callable[[int], dict[str, Any]]


def test_the_second_is_refused(debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    run, arguments = tmp_path / "run", small(debug_shop)
    first = Job(tmp_path / "first", [*arguments, f"--output={run}"], ranks=2, fault=slow)
    first.until(lambda: newest(run) >= 2)
    holder = json.loads((run / LOCK).read_text())
    again = {
        "resumed": Job(tmp_path / "resumed", ["--resume", str(run)], ranks=2),
        "overwriting": Job(tmp_path / "overwriting", [*arguments, f"--output={run}", "--overwrite"]),
    }
    ended = {name: job.wait() for name, job in again.items()}
    assert first.wait()[0].code == 0
    for name, (one, *others) in ended.items():
        assert one.code == 2, name
        assert one.error == (
            f"error: '{run}' is being trained by process {holder['process']} on host '{holder['host']}' (since "
            f"{holder['since']}): wait until that has ended, or end it, or give another --output"
        )
        assert all(other.code == 2 for other in others)
    assert state_after(run, STEPS) == uninterrupted(2)
    assert not (run / LOCK).exists()
    assert [path.name for path in tmp_path.glob("*run*")] == ["run"]


@pytest.mark.parametrize("guilty", [(0,), (0, 1)])
def test_a_kill_leaves_it_free(
    debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path, guilty: tuple[int, ...]
) -> None:
    run = tmp_path / "run"
    first = Job(tmp_path / "first", [*small(debug_shop), f"--output={run}"], ranks=2, fault=slow)
    first.until(lambda: newest(run) >= 2)
    first.send(signal.SIGKILL, *guilty)
    first.wait(30)
    assert (run / LOCK).exists(), "nobody was left to remove it"
    resumed(tmp_path / "again", run, ranks=2)
    assert not (run / LOCK).exists()
    assert state_after(run, STEPS) == uninterrupted(2)


def test_the_next_try_of_the_same_job_waits(debug_shop: Path, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    run, arguments = tmp_path / "run", [*small(debug_shop), f"--output={tmp_path / 'run'}"]
    first = Job(tmp_path / "first", arguments, ranks=2, fault=slow, job="shop")
    first.until(lambda: newest(run) >= 2)
    second = Job(tmp_path / "second", arguments, ranks=2, job="shop")
    first.send(signal.SIGTERM)
    assert [one.code for one in first.wait()] == [0, 0]
    ended = second.wait()
    assert [one.code for one in ended] == [0, 0], ended[0].err
    assert "goes on after step " in ended[0].err
    assert state_after(run, STEPS) == uninterrupted(2)


def test_the_next_try_waits_for_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The try before writes it when it is asked to end: to begin again would be to lose it."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "shop")
    config, first = tiny_config(tmp_path / "data"), RunFolder.create(tmp_path / "run")
    first.start(config_to_json(config))

    def end() -> None:
        commit = first.path / "checkpoints/step-0000000001/checkpoint.json"
        commit.parent.mkdir(parents=True)
        commit.touch()
        first.release()

    threading.Timer(0.3, end).start()
    output = Output(str(first.place), mark=MARK, parts=PARTS)
    run, goes_on = training._place(config, output, overwrite=False, resume=False)
    assert (run.path, goes_on) == (first.place, True)
