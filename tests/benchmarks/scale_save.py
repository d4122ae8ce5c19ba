"""How long a save in the background holds up training: tables of 1 GB, the reader's batches, all of a run's state.

What is counted: `blocked`, the time that `save` takes to return; `slower`, how much longer than as many usual steps
those take that begin while it writes. A usual step is the median of those right before the save.
"""

import statistics
import time
from pathlib import Path

from tests.benchmarks.bench_step import Ours, timed
from tests.benchmarks.scale_ranks import here
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.training.checkpoints.commit import COMMIT, folder_of
from torchrec_mt.training.checkpoints.store import CheckpointStore
from torchrec_mt.training.early_stop import EarlyStop
from torchrec_mt.training.run_state import RunState

THREADS, WARMUP = 2, 3

Found = dict[str, list[float]]
"""By save: seconds of a `usual` step, `blocked`, `slower`, and `writing` from the return of `save` on."""


def measure(path: Path, folder: Path, batch_size: int, saves: int, steps: int) -> Found:
    """A save after every so many steps, each once the one before is written; for a process of its own.

    Args:
        path: of the prepared dataset. folder: for checkpoints.
    """
    place = here(THREADS)
    system = Ours(PreparedDataset.open(path), batch_size, "auto", place)
    state = RunState(system.model, system.optimizers, system.objective, system.reader, place, seed=0)
    store, found = CheckpointStore(folder, keep=1), Found(usual=[], blocked=[], slower=[], writing=[])
    timed(system.step, WARMUP)
    for number in range(saves):
        usual = statistics.median(timed(system.step, 1) for _ in range(steps))
        start = time.perf_counter()
        store.save(
            number,
            state.tensors(),
            state=state.numbers(number, EarlyStop(0), ()),
            rank_state=state.of_rank(),
            background=True,
        )
        returned = time.perf_counter()
        commit, during = folder / folder_of(number) / COMMIT, []
        while not commit.exists():
            during.append(timed(system.step, 1))
        store.finish()
        found["usual"].append(usual)
        found["blocked"].append(returned - start)
        found["slower"].append(sum(during) - usual * len(during))
        found["writing"].append(time.perf_counter() - returned)
    store.close()
    system.close()
    return found


def in_steps(found: Found) -> dict[str, float]:
    """Usual steps that a save costs: of the first, which takes the memory of the copy, and the median of the others."""
    blocked = [seconds / usual for seconds, usual in zip(found["blocked"], found["usual"], strict=True)]
    slower = [seconds / usual for seconds, usual in zip(found["slower"], found["usual"], strict=True)]
    return {
        "save_stall_steps": statistics.median(blocked[1:]),
        "save_stall_steps_first": blocked[0],
        "save_slower_steps": statistics.median(slower[1:]),
    }
