"""Cells of an experiment at once, in processes of their own on this machine; each GPU gets its share of them."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event

import torch

from torchrec_mt.distributed.lost import Together
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import UserError
from torchrec_mt.holding import held_if_free
from torchrec_mt.reporting.terminal import progress_console
from torchrec_mt.workflows.grid import Done, run_cell
from torchrec_mt.workflows.grid_config import Cell
from torchrec_mt.workflows.grid_turns import AskedToEndError, lock_of

_LOOK_S = 0.5
_asked: list[Event] = []
"""In a job: set once the program was asked to end."""


def run_in_jobs(
    cells: Sequence[Cell], jobs: int, *, tell: Callable[[str], None], asked: Callable[[], bool]
) -> list[Done]:
    """As `run_cells`, that many cells at once. Twins begin after the run whose twins they are.

    CPU threads are shared evenly among the jobs where `runtime.threads` does not say how many each has.

    Args:
        tell: takes a line per cell. asked: whether this process was asked to end.

    Raises:
        AskedToEndError: it was; every job wrote a checkpoint.
        UserError: under a launcher, whose ranks share each cell already; a job that was killed.
    """
    if "WORLD_SIZE" in os.environ:
        raise UserError("--jobs is for one process without a launcher: here, all ranks train each cell together")
    context = get_context("spawn")  # a fork would share torch's threads and the GPU's state
    stop, devices = context.Event(), context.SimpleQueue()
    for device in _devices(jobs):
        devices.put(device)
    pool = ProcessPoolExecutor(jobs, context, _begin, (stop, devices))

    def stopped() -> bool:
        if asked():
            stop.set()
        return stop.is_set()

    try:
        return _Queue(cells, pool, jobs, tell).run(stopped)
    except BrokenProcessPool:
        raise UserError(
            "a job was killed, by the system if there was too little memory: what is there is kept, call again, "
            "perhaps with fewer --jobs",
            exit_code=1,
        ) from None
    except KeyboardInterrupt:
        tell("ends after a checkpoint of each job; once more, and it ends at once")
        raise
    finally:
        stop.set()
        _end(pool)


class _Queue:
    """What is to do, and what is being done."""

    def __init__(
        self, cells: Sequence[Cell], pool: ProcessPoolExecutor, jobs: int, tell: Callable[[str], None]
    ) -> None:
        self._cells, self._pool, self._jobs, self._tell = cells, pool, jobs, tell
        self._left = list(cells)
        self._running: dict[Future[Done | None], Cell] = {}
        self._done: dict[str, Done] = {}

    def run(self, stopped: Callable[[], bool]) -> list[Done]:
        """The outcome of every cell, in their order."""
        while self._left or self._running:
            if stopped():
                self._stop()
            self._fill()
            held = [self._take(future) for future in wait(self._running, _LOOK_S, FIRST_COMPLETED).done]
            if any(held):
                time.sleep(_LOOK_S)  # a lock of another program gives no sign when it is free
        return [self._done[cell.name] for cell in self._cells]

    def _fill(self) -> None:
        places = [cell.place for cell in self._running.values()]
        for cell in list(self._left):
            if len(self._running) < self._jobs and cell.place not in places:
                self._left.remove(cell)
                self._running[self._pool.submit(_run, cell, self._jobs)] = cell
            places.append(cell.place)

    def _take(self, future: Future[Done | None]) -> bool:
        """Whether another program had the cell, which comes again then."""
        cell, found = self._running.pop(future), future.result()
        if found is None:
            self._left.append(cell)
            self._left.sort(key=lambda one: one.twins_of is not None)
            return True
        self._done[cell.name] = found
        said = f": failed: {found.failure}" if found.failure else ""
        self._tell(f"[{len(self._done)}/{len(self._cells)}] {cell.name}{said}")
        return False

    def _stop(self) -> None:
        place = next(iter([*self._running.values(), *self._left])).place
        wait(self._running)
        raise AskedToEndError(place)


def _devices(jobs: int) -> list[str]:
    """What each job may see of the GPUs, as CUDA_VISIBLE_DEVICES says it; empty without any."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    seen = named.split(",") if named else [str(number) for number in range(count)]
    return [seen[job % count] if count else "" for job in range(jobs)]


def _end(pool: ProcessPoolExecutor) -> None:
    """Waits for the jobs' ends; Ctrl-C while it does ends them at once."""
    try:
        pool.shutdown(cancel_futures=True)
    except KeyboardInterrupt:
        for child in active_children():
            child.kill()
        raise


def _begin(stop: Event, devices: "SimpleQueue[str]") -> None:
    """In a job, once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the program hears of them, and asks
    _asked.append(stop)
    device = devices.get()
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    threading.Thread(target=_end_with_program, daemon=True).start()


def _end_with_program() -> None:
    program = parent_process()
    if program is not None:
        program.join()
        os._exit(1)


def _run(cell: Cell, jobs: int) -> Done | None:
    """In a job: the cell's outcome; nothing where another program has it."""
    threads = cell.config.runtime.threads or max(1, (os.cpu_count() or 1) // jobs)

    def tell(line: str) -> None:
        progress_console().print(f"{cell.name}: {line.strip()}", highlight=False, markup=False, soft_wrap=True)

    with ExitStack() as stack:
        if not stack.enter_context(held_if_free(lock_of(cell))):
            return None
        here = stack.enter_context(runtime(replace(cell.config.runtime, threads=threads)))
        return run_cell(cell, here, Together(), show=False, tell=tell, asked=_asked[0].is_set)
