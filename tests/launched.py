"""The same small trainings under torchrun, whose agents and ranks a test may signal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil


class Agent:
    """One `torchrun` and the ranks that it started.

    Args:
        said: a file that it and its ranks write to. options: of torchrun. arguments: of `torchrec-mt train`.
    """

    def __init__(self, said: Path, options: Sequence[str], arguments: Sequence[str]) -> None:
        self._said = said
        command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "torchrec_mt.train", *arguments]
        with said.open("w") as file:
            # A session of its own: signals to the tests' terminal are none of its business.
            self._agent = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)

    @property
    def said(self) -> str:
        """What it and its ranks have said so far."""
        return self._said.read_text()

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes of the ranks that are alive now, by rank."""
        found = {}
        for process in psutil.Process(self._agent.pid).children():
            try:
                found[int(process.environ()["RANK"])] = process
            except (psutil.Error, KeyError):
                continue
        return found

    def kill_machine(self) -> None:
        """The agent and its ranks, all at once."""
        ranks = self.ranks().values()
        os.kill(self._agent.pid, signal.SIGKILL)
        for rank in ranks:
            rank.kill()
        self._agent.wait()

    def send(self, number: signal.Signals) -> None:
        """A signal to the agent alone."""
        self._agent.send_signal(number)

    def until(self, sign: Callable[[], object], *, seconds: float = 120) -> None:
        """Waits for something that the job does; it must not end before."""
        deadline = time.monotonic() + seconds
        while not sign():
            assert self._agent.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)  # polls other processes

    def wait(self, seconds: float = 120) -> int:
        """The exit code of the agent.

        Raises:
            TimeoutExpired: it has not ended within so many seconds; all is killed.
        """
        try:
            return self._agent.wait(seconds)
        finally:
            if self._agent.poll() is None:
                self.kill_machine()
