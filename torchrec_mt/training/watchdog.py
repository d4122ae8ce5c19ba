"""A watchdog per rank: where training stands still for too long, it names the rank that holds up the others, and ends.

A rank that is stuck (a file system that hangs, a deadlock) leaves all others waiting in a collective; seen from any of
them the network is slow. Each rank therefore tells the job's store where it is (step, phase, for how long), and whoever
has waited too long reads what all have told, names the rank that is furthest behind, and ends its process: the launcher
ends the others, and starts again from the newest checkpoint if it may.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from torchrec_mt.training.clock import PHASES, Position

T = TypeVar("T")
EXIT_CODE = 70
"""Of a process that the watchdog ended."""
_KEY = "watchdog/{rank}"
_WATCHED = (*PHASES, "log")


@dataclass(frozen=True)
class Told:
    """What a rank told last: its step and phase, how long it had been in it, and when it told (wall clock)."""

    step: int
    phase: str
    seconds: float
    at: float


class Watchdog:
    """Watches one rank's `where` from a thread of its own.

    Args:
        where: the rank's position now. seconds: longest that a phase of a step, or its line in the log, may take. Other
            phases (validation, checkpoint) are not watched, collectives in them have the process group's timeout.
        store: shared by the ranks; the process group's by default.
        end: what ends the process.
    """

    def __init__(
        self,
        where: Callable[[], Position],
        *,
        seconds: float,
        rank: int,
        world_size: int,
        store: Store | None = None,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._where, self._seconds, self._rank, self._world_size = where, seconds, rank, world_size
        self._store = store or dist.distributed_c10d._get_default_store()
        self._end = end or _end_process
        self._over = threading.Event()
        self._round = min(5.0, seconds / 4)
        self._asking: threading.Thread | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._round):
            position = self._where()
            stood = time.perf_counter() - position.since
            self._tell(position, stood)
            if position.phase in _WATCHED and stood > self._seconds:
                # The ranks that wait and the one that they wait for come here within one round: let all tell.
                if self._over.wait(self._round):
                    return
                if self._where().since == position.since:
                    own = Told(position.step, position.phase, time.perf_counter() - position.since, time.time())
                    self._end(said(self._all(), self._seconds, rank=self._rank, own=own))
                    return

    def _tell(self, position: Position, stood: float) -> None:
        told = json.dumps([position.step, position.phase, stood, time.time()])
        self._asked(lambda: self._store.set(_KEY.format(rank=self._rank), told), None)

    def _all(self) -> list[Told | None]:
        """What all have told; nothing where the store has gone, or does not answer."""

        def ask() -> list[Told | None]:
            keys = [_KEY.format(rank=rank) for rank in range(self._world_size)]
            return [Told(*json.loads(self._store.get(key))) if self._store.check([key]) else None for key in keys]

        return self._asked(ask, [])

    def _asked(self, ask: Callable[[], T], otherwise: T) -> T:
        """What the store says; `otherwise` where it has gone, and most of the job with it, or does not answer within a
        round: the process that holds it may be the one that is stuck, and this rank still has to end."""
        found = [otherwise]

        def call() -> None:
            with suppress(RuntimeError):
                found[0] = ask()

        if self._asking is None or not self._asking.is_alive():
            self._asking = threading.Thread(target=call, name="watchdog's question", daemon=True)
            self._asking.start()
            self._asking.join(self._round)
        return found[0]


def said(ranks: Sequence[Told | None], seconds: float, *, rank: int, own: Told | None = None) -> str:
    """The message: who is stuck, where, and where the others wait; of `own` alone where nobody told anything.

    The stuck one is furthest behind: in the earliest step and in the earliest phase of it, and among equal ones there
    the longest. A rank that told nothing is behind all.
    """

    def behind(one: int) -> tuple[int, int, float]:
        told = ranks[one]
        if told is None:
            return -1, 0, 0.0
        place = PHASES.index(told.phase) if told.phase in PHASES else len(PHASES)
        return told.step, place, -told.seconds

    if not ranks and own is not None:
        silent = "; what the others do cannot be asked any more: the job's store, in rank 0 or the launcher, is silent"
        return _message(rank, f"this rank is {_place(own)}", seconds, silent)
    stuck = min(range(len(ranks)), key=behind)
    others = [
        f"rank {other} waits in '{told.phase}' of step {told.step}"
        for other, told in enumerate(ranks)
        if other != stuck and told is not None
    ]
    told = ranks[stuck]
    place = "stuck before its first step" if told is None else _place(told)
    return _message(rank, f"rank {stuck} is {place}", seconds, f"; {', '.join(others[:8])}" if others else "")


def _place(told: Told) -> str:
    return f"stuck in phase '{told.phase}' of step {told.step} for {told.seconds:.0f} s"


def _message(rank: int, who: str, seconds: float, others: str) -> str:
    return (
        f"error: rank {rank}: training stands still: {who} (more than trainer.stuck_seconds = {seconds:g}){others}: "
        "look at that rank's machine, disk and network; `--resume` goes on from the newest checkpoint"
    )


def _end_process(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)  # where the main thread is, for whoever mends it
    os._exit(EXIT_CODE)
