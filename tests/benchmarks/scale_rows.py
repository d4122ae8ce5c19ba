"""What a step and the process's memory cost as the rows of one table grow: words, of which a batch takes as many.

The whole training path runs: reader, sharded tables with row-wise Adagrad, towers, loss. Five words a query and a
product are drawn evenly from all rows. Memory is what the kernel counts as resident and anonymous.
"""

import statistics
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.bench_step import Ours, Peak, give_back, status, timed
from tests.benchmarks.dataset import write_bench_dataset
from tests.benchmarks.scale_ranks import here
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.table_state import table_state
from torchrec_mt.training.checkpoints.store import CheckpointStore

DIM, THREADS, WARMUP = 16, 2, 5
ROW_BYTES = 4 * DIM + 4
"""Of a float32 row, and its sum of row-wise Adagrad."""

Found = dict[int, dict[str, Any]]
"""By rows: seconds of a step, milliseconds by phase; bytes that are expected, held once built, held after the first
steps, and at most while building. Of the table that was saved, too: bytes above these at most while saving."""


def measure(
    folder: Path, rows: tuple[int, ...], saved: int, entities: int, batch_size: int, rounds: int, steps: int
) -> Found:
    """Steps of all tables in turns, medians; for a process of its own.

    Args:
        entities: queries and products, and rows of the three tables beside the words'. saved: rows of the table to be
            saved.
    """
    place = here(THREADS)
    datasets = {
        count: write_bench_dataset(folder / f"{count}", pairs=max(entities, 2 * batch_size), rows=entities, words=count)
        for count in rows
    }
    for _ in range(3):  # what libraries and allocator take once is nobody's
        first, _ = _built(datasets[rows[0]], batch_size, place)
        first.close()
        del first
    systems, found = {}, Found()
    for count, dataset in datasets.items():
        systems[count], found[count] = _built(dataset, batch_size, place)
        found[count]["expected"] = ROW_BYTES * (count + 3 * entities)
    seconds: dict[int, list[float]] = {count: [] for count in rows}
    for _ in range(rounds):
        for count, system in systems.items():
            seconds[count].append(timed(system.step, steps))
    for count, system in systems.items():
        phases = system.trainer.steps.clock.read()
        found[count] |= {"seconds": statistics.median(seconds[count]), "phases": phases}
        system.close()
    return found | {saved: found[saved] | _saving(systems[saved], folder / "checkpoints")}


def _built(dataset: PreparedDataset, batch_size: int, place: Runtime) -> tuple[Ours, dict[str, Any]]:
    """Model and trainer with all of their memory touched, and what they take."""
    give_back()
    before = status("RssAnon")
    with Peak() as peak:
        system = Ours(dataset, batch_size, "auto", place, dim=DIM)
        _touch_sums(system)
    give_back()
    built = status("RssAnon") - before
    timed(system.step, WARMUP)
    system.trainer.steps.clock.read()
    give_back()
    return system, {"built": built, "trained": status("RssAnon") - before, "peak": peak.bytes}


def _state(system: Ours) -> dict[str, torch.Tensor | Pieces]:
    return table_state(system.model, system.optimizers.table_rule, system.optimizers.combined)


def _touch_sums(system: Ours) -> None:
    """Zeros that nobody wrote take no memory yet."""
    for name, value in _state(system).items():
        if name.endswith(".sum"):
            for _, tensor in value.pieces if isinstance(value, Pieces) else [((), value)]:
                tensor.zero_()


def _saving(system: Ours, folder: Path) -> dict[str, int]:
    """Highest memory above that of training, bytes: while waiting for a save, and with one in the background."""
    store = CheckpointStore(folder, keep=1)
    found = {}
    for name, background in (("save", False), ("staging", True)):
        with Peak() as peak:
            store.save(int(background), _state(system), state={}, rank_state={}, background=background)
            store.finish()
        found[name] = peak.bytes
    store.close()
    return found
