"""Cells of an experiment at once: the same results as one by one, and what ends a job ends nothing else."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shop import prepared_debug_shop, shared_root
from tests.small_grid import UNIFIED_TWINS_BROKEN, written_grid
from torchrec_mt.compare import main
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import UserError
from torchrec_mt.holding import held_if_free
from torchrec_mt.workflows.grid_config import cells_of, load_grid
from torchrec_mt.workflows.grid_turns import LOCKS, AskedToEndError, lock_of, turns


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = shared_root(tmp_path_factory)
    prepared_debug_shop(found)
    return found


def written(root: Path, folder: Path, name: str, *, steps: int = 6) -> str:
    return written_grid(root, folder, UNIFIED_TWINS_BROKEN, f"trainer.steps={steps}", "runtime.threads=1", name=name)


def test_as_one_by_one(root: Path, tmp_path: Path) -> None:
    assert main([written(root, tmp_path, "alone"), "--json"]) == 1, "a cell failed"
    assert main([written(root, tmp_path, "apart"), "--json", "--jobs", "2"]) == 1
    alone, apart = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("alone", "apart"))
    for same in ("tasks", "gain", "trained"):
        assert apart[same] == alone[same], same
    assert [(cell["method"], cell["why"].replace("/apart/", "/alone/")) for cell in apart["failed"]] == [
        (cell["method"], cell["why"]) for cell in alone["failed"]
    ]
    assert not list((tmp_path / "apart" / LOCKS).iterdir())


@pytest.mark.parametrize("ended_by", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_one_that_is_asked_to_end_goes_on(root: Path, tmp_path: Path, ended_by: signal.Signals) -> None:
    grid = written(root, tmp_path, "out", steps=100_000)
    program = subprocess.Popen(
        [sys.executable, "-m", "torchrec_mt.compare", grid, "--jobs", "2", "--only", "unified"],
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "out/unified/seed-0/metrics.jsonl"
    wait_until(log.is_file)
    program.send_signal(ended_by)
    said = program.communicate(timeout=120)[1]
    assert program.returncode == (130 if ended_by == signal.SIGINT else 0), said
    assert ("interrupted" if ended_by == signal.SIGINT else "asked to end; to go on from") in said
    assert ("once more, and it ends at once" in said) == (ended_by == signal.SIGINT)
    assert "Traceback" not in said
    assert list((tmp_path / "out/unified/seed-0/checkpoints").iterdir()), "nothing is lost"
    assert not list((tmp_path / "out" / LOCKS).iterdir())


def test_a_job_that_is_killed(root: Path, tmp_path: Path) -> None:
    grid, log = written(root, tmp_path, "out", steps=100_000), tmp_path / "out/unified/seed-0/metrics.jsonl"

    def kill() -> None:
        wait_until(log.is_file)
        lock = tmp_path / "out/unified/seed-0/training.lock"
        os.kill(json.loads(lock.read_text())["process"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match="a job was killed") as error:
        main([grid, "--json", "--jobs", "2", "--only", "unified"])
    killer.join()
    assert error.value.exit_code == 1


@pytest.mark.parametrize("jobs", ["0", "two", "-1", "2000"])
def test_no_number_of_jobs(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["grid.toml", "--jobs", jobs])
    assert error.value.code == 2
    assert f"argument --jobs: {jobs!r}: must be a whole number from 1 to 1024" in capsys.readouterr().err


def test_under_a_launcher(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--jobs is for one process without a launcher"):
        main([written(root, tmp_path, "out"), "--jobs", "2"])


def test_what_another_program_has_comes_last(root: Path, tmp_path: Path) -> None:
    cells = cells_of(load_grid(written(root, tmp_path, "out")))
    assert [cell.method for cell in cells] == ["unified", "broken", "twins"]
    said: list[str] = []
    with runtime(cells[0].config.runtime):
        with held_if_free(lock_of(cells[0])):
            in_turn = turns(cells, tell=said.append, asked=lambda: False)
            seen = [next(in_turn)[1].method]
            assert lock_of(cells[1]).is_file(), "held while it is whose turn it is"
        seen += [cell.method for _, cell in in_turn]
        assert seen == ["broken", "unified", "twins"]
        with held_if_free(lock_of(cells[0])):
            with pytest.raises(AskedToEndError) as asked:
                list(turns(cells[:1], tell=said.append, asked=lambda: True))
            waiting = turns(cells[:1], tell=lambda line: asked_of.append(line), asked=lambda: bool(asked_of))
            asked_of: list[str] = []
            with pytest.raises(AskedToEndError):
                list(waiting)
    assert asked.value.place == cells[0].place
    assert asked_of == ["  waiting for 1 cells that another program has, first unified, seed 0"]


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    """Waits for what another process does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)
