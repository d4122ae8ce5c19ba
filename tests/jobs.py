"""Training jobs of real processes, which a test may kill: one a rank, forked off a process that has imported all of it.

Ranks find each other as under a launcher; there is none here to end the others when one dies.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.shop import FILES, debug_overrides

STEPS = 20

Fault = Callable[[int], None]
"""Called with the rank in its process, before the program: an importable function (or a partial of one)."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torchrec_mt.train", "torch.utils.tensorboard", "tests.faulty"])


@dataclass(frozen=True)
class Ended:
    """A process that has ended: exit code (minus the signal), what it said, and after how many seconds of waiting."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def error(self) -> str:
        """The one message that it ended with, after what it told about its progress."""
        [line] = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.err.endswith(f"{line}\n"), self.err
        assert "Traceback" not in self.err, self.err
        return line


class Job:
    """A training on some ranks.

    Args:
        folder: an empty one, for what the ranks say. arguments: of `torchrec-mt train`.
        fault: what goes wrong. job: the launcher's name for the job, if there is one.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], *, ranks: int = 1, fault: Fault | None = None, job: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._processes: list[ForkServerProcess] = []
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": job or "none"}
        for rank in range(ranks):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            environment = place | {key: str(value) for key, value in numbers.items()} if ranks > 1 else {}
            process = _CONTEXT.Process(
                target=_run, args=(folder / str(rank), list(arguments), environment, rank, fault), daemon=True
            )
            process.start()
            self._processes.append(process)

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """A signal to some ranks; to all if none is named."""
        for rank in ranks or range(len(self._processes)):
            pid = self._processes[rank].pid
            assert pid is not None
            if self._processes[rank].is_alive():
                os.kill(pid, number)

    def until(self, sign: Callable[[], object], *, seconds: float = 60) -> None:
        """Waits for something that the job does; it must not end before."""
        deadline = time.monotonic() + seconds
        while not sign():
            assert any(process.is_alive() for process in self._processes), self._said()
            assert time.monotonic() < deadline, self._said()
            time.sleep(0.01)  # polls other processes

    def wait(self, seconds: float = 60) -> list[Ended]:
        """The end of all ranks.

        Raises:
            AssertionError: they have not ended within so many seconds; they are killed.
        """
        began, ended = time.monotonic(), []
        for process in self._processes:
            process.join(max(0.0, began + seconds - time.monotonic()))
            ended.append(time.monotonic() - began)
        alive = [rank for rank, process in enumerate(self._processes) if process.exitcode is None]
        self.send(signal.SIGKILL)
        for process in self._processes:
            process.join()
        assert not alive, f"ranks {alive} have not ended within {seconds} s: {self._said()}"
        return [
            Ended(process.exitcode or 0, *self._texts(rank), ended[rank])
            for rank, process in enumerate(self._processes)
        ]

    def _texts(self, rank: int) -> tuple[str, str]:
        files = [self._folder / f"{rank}.{stream}" for stream in ("out", "err")]
        return (files[0].read_text(), files[1].read_text()) if files[1].exists() else ("", "")

    def said(self, rank: int) -> str:
        """What a rank has told about its progress so far."""
        return self._texts(rank)[1]

    def _said(self) -> str:
        return "\n".join(text for rank in range(len(self._processes)) for text in self._texts(rank))


def _run(place: Path, arguments: list[str], environment: Mapping[str, str], rank: int, fault: Fault | None) -> None:
    for stream, descriptor in (("out", 1), ("err", 2)):
        file = os.open(f"{place}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.update(environment)
    from torchrec_mt.errors import run_program
    from torchrec_mt.train import main

    if fault is not None:
        fault(rank)
    sys.argv = ["torchrec-mt train", *arguments]
    run_program(main)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return int(any_port.getsockname()[1])


def checkpoints(run: Path) -> list[int]:
    """Steps of the checkpoints that count, in the order in which they were written."""
    commits = [json.loads(file.read_text()) for file in run.glob("checkpoints/step-*/checkpoint.json")]
    return [commit["step"] for commit in sorted(commits, key=lambda commit: int(commit["sequence"]))]


def newest(run: Path) -> int:
    """Step of the newest checkpoint that counts; 0 where there is none."""
    return ([0, *checkpoints(run)])[-1]


def small(root: Path, *overrides: str) -> list[str]:
    """Arguments of a training on the debug shop that takes about a second: 20 steps, a checkpoint after each."""
    settings = [
        *debug_overrides(root),
        "reader.batch_size=64",
        "model.hidden=16",
        "model.task_hidden=16",
        f"trainer.steps={STEPS}",
        "trainer.validations=2",
        "trainer.validation_anchors=20",
        "trainer.log_every=1",
        "checkpoint.every=1",
    ]
    return [*FILES, *(f"--set={setting}" for setting in [*settings, *overrides])]


def resumed(folder: Path, run: Path, *overrides: str, ranks: int) -> list[Ended]:
    """Goes on with a run to its end."""
    settings = [f"--set={override}" for override in overrides]
    ended = Job(folder, ["--resume", str(run), *settings], ranks=ranks).wait()
    assert [one.code for one in ended] == [0] * ranks, [one.err for one in ended]
    return ended


def state_after(run: Path, step: int) -> dict[str, Any]:
    """All that a checkpoint holds, as checksums by file, and the losses and metrics that were logged until then."""
    commit = json.loads((run / f"checkpoints/step-{step:010}/checkpoint.json").read_text())
    kept = {
        name.replace(commit["attempt"], "").replace("..", "."): record["xxh3_128"]
        for name, record in commit["files"].items()
        if not name.startswith("tensors.")  # holds the attempt's name
    }
    return kept | {"log": logged(run, step)}


def logged(run: Path, step: int) -> list[dict[str, float]]:
    """The lines of metrics.jsonl until a step, without times."""
    from tests.tiny_run import logged as all_logged  # brings torch

    return [line for line in all_logged(run) if line["step"] <= step]
