"""How long a save in the background holds up training: tables of 1 GB, the reader's batches, all of a run's state.

What is counted: `blocked`, the time that `save` takes to return; `first`, how much longer than a usual step the next
one takes, which begins while tables are copied; `waited`, what of that it waits for the copy before it updates them;
`slower`, how much longer than as many usual steps those take that begin while the save goes on, the first included. A
usual step is the median of those right before the save.
"""

import statistics
import time
from pathlib import Path

from tests.benchmarks.bench_step import Ours, timed
from tests.benchmarks.scale_ranks import here
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.table_state import of_tables
from torchrec_mt.training.checkpoints.commit import COMMIT, folder_of
from torchrec_mt.training.checkpoints.store import CheckpointStore
from torchrec_mt.training.early_stop import EarlyStop
from torchrec_mt.training.run_state import RunState

THREADS, WARMUP = 2, 3

Found = dict[str, list[float]]
"""By save: seconds of a `usual` step, `blocked`, `first`, `waited`, `slower`, and `writing` from its return on."""


class Gate:
    """Lets a trainer that keeps nothing wait for the copies of a store, and tells how long it did."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store, self.waited = store, 0.0

    def is_due(self, step: int) -> bool:
        return False

    def save(self, step: int, stop: EarlyStop, *, value: float | None = None, last: bool = False) -> None:
        return

    def before_update(self) -> None:
        start = time.perf_counter()
        self._store.finish_copy()
        self.waited += time.perf_counter() - start


def measure(path: Path, folder: Path, batch_size: int, saves: int, steps: int) -> Found:
    """A save after every so many steps, each once the one before is written; for a process of its own.

    Args:
        path: of the prepared dataset. folder: for checkpoints.
    """
    place, store = here(THREADS), CheckpointStore(folder, keep=1)
    gate = Gate(store)
    system = Ours(PreparedDataset.open(path), batch_size, "auto", place, keep=gate)
    state = RunState(system.model, system.optimizers, system.objective, system.balancer, system.reader, place, seed=0)
    found = Found(usual=[], blocked=[], first=[], waited=[], slower=[], writing=[])
    timed(system.step, WARMUP)
    for number in range(saves):
        usual = statistics.median(timed(system.step, 1) for _ in range(steps))
        gate.waited, start = 0.0, time.perf_counter()
        tensors = state.tensors()
        store.save(
            number,
            tensors,
            state=state.numbers(number, EarlyStop(0), ()),
            rank_state=state.of_rank(),
            background=True,
            late=of_tables(tensors),
        )
        returned = time.perf_counter()
        during = [timed(system.step, 1)]
        found["waited"].append(gate.waited)
        commit = folder / folder_of(number) / COMMIT
        while not commit.exists():
            during.append(timed(system.step, 1))
        store.finish()
        found["usual"].append(usual)
        found["blocked"].append(returned - start)
        found["first"].append(during[0] - usual)
        found["slower"].append(sum(during) - usual * len(during))
        found["writing"].append(time.perf_counter() - returned)
    store.close()
    system.close()
    return found


def in_steps(found: Found) -> dict[str, float]:
    """Usual steps that a save costs: what it blocks and the next step takes longer, median of all but the first, and of
    the first, which takes the memory of the copy; and the median of what steps take longer until it is written."""

    def steps(*names: str) -> list[float]:
        seconds = map(sum, zip(*(found[name] for name in names), strict=True))
        return [second / usual for second, usual in zip(seconds, found["usual"], strict=True)]

    stall, slower = steps("blocked", "first"), steps("blocked", "slower")
    return {
        "save_stall_steps": statistics.median(stall[1:]),
        "save_stall_steps_first": stall[0],
        "save_slower_steps": statistics.median(slower[1:]),
    }
