"""What goes wrong in a training on purpose: called in a rank's process before the program begins, with the rank.

Signals are sent by the process to itself, in the middle of a known step.
"""

import math
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from torchrec_mt.data.opening import Mapped
from torchrec_mt.data.reader import Reader
from torchrec_mt.training import job
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.optim import Optimizers
from torchrec_mt.training.step import Steps
from torchrec_mt.training.trainer import Trainer


def _before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """Calls `act` with the arguments of every call of a function or method, before it."""
    function = getattr(owner, name)

    def called(*given: Any, **named: Any) -> Any:
        act(*given, **named)
        return function(*given, **named)

    setattr(owner, name, called)


def _in_step(step: int, act: Callable[[], None]) -> None:
    """Acts when the gradients of a step are there, and the weights are not yet changed (those of tables are)."""
    now = 0

    def begin(steps: Steps, before: int) -> None:
        nonlocal now
        now = before + 1

    def finish(*given: Any) -> None:
        if now == step:
            act()

    _before(Steps, "_begin", begin)
    _before(Steps, "_finish", finish)


def _send(number: signal.Signals, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


def signalled(number: signal.Signals, step: int, guilty: int, rank: int, *, times: int = 1) -> None:
    """A rank hears a signal in a step."""
    if rank == guilty:
        _in_step(step, lambda: _send(number, times))


def signalled_in_validation(rank: int) -> None:
    """SIGTERM when the first validation begins."""
    told = [rank]
    _before(Trainer, "_validation", lambda *given: _send(signal.SIGTERM) if told and told.pop() == 0 else None)


def signalled_in_preparation(rank: int) -> None:
    """SIGTERM before the model is built."""
    _before(job, "build_model", lambda *given, **named: _send(signal.SIGTERM))


def slow(rank: int) -> None:
    """Steps of a tenth of a second at least."""
    _before(Steps, "_begin", lambda *given: time.sleep(0.1))


def stuck_reader(step: int, guilty: int, rank: int) -> None:
    """The batch of a step never comes on one rank."""
    if rank == guilty:
        _before(Reader, "_batch", lambda reader, made, before: time.sleep(3600) if before + 1 == step else None)


def stuck_optimizer(step: int, guilty: int, rank: int) -> None:
    """A step never ends on one rank."""
    if rank == guilty:
        _in_step(step, lambda: time.sleep(3600))


def full_disk(step: int, guilty: int, size: int, rank: int) -> None:
    """From a step on this rank can write no file beyond a size."""
    if rank == guilty:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        _in_step(step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard)))


def no_number(step: int, guilty: int, rank: int) -> None:
    """The loss of one rank is NaN in a step."""
    if rank == guilty:
        call = Objective.__call__

        def called(self: Objective, vectors: Any, batch: Any, before: int) -> Any:
            losses = call(self, vectors, batch, before)
            return {name: loss * math.nan for name, loss in losses.items()} if before + 1 == step else losses

        patch.object(Objective, "__call__", called).start()


def no_gradient(step: int, rank: int) -> None:
    """The gradients of dense weights overflow in a step, on all ranks, where its losses do not."""
    steps = iter(range(1, step + 1))

    def overflow(optimizers: Optimizers) -> None:
        if next(steps, None) == step:
            for gradient in optimizers.dense_gradients():
                gradient.fill_(math.inf)

    _before(Optimizers, "step", overflow)


def changed_after(step: int, change: Callable[[], None], guilty: int, rank: int) -> None:
    """Something outside changes after a step's batch was read, and before that of the next."""
    if rank == guilty:
        steps = iter(range(step + 1))
        _before(Mapped, "check", lambda *given: change() if next(steps, None) == step else None)


def changed_within(step: int, change: Callable[[], None], guilty: int, rank: int) -> None:
    """The same while a step's batch is read."""
    if rank == guilty:
        _before(Reader, "_lane", lambda reader, lane, before, streams: change() if before + 1 == step else None)
