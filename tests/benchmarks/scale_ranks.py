"""From one rank to two on one machine, with two threads in all: one rank's two against two ranks' one each.

Batches are of all ranks together, so a batch of B pairs is the same work however many ranks share it: a softmax of B
anchors over the candidates of all B pairs.
"""

import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.benchmarks.bench_step import Ours, timed
from tests.ranks import run_on_ranks
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.layouts import LayoutName
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.distributed.runtime import Runtime

LAYOUTS: tuple[LayoutName, ...] = ("table_wise", "row_wise")
WORLDS, THREADS, WARMUP, PATIENCE_S = (1, 2), 2, 3, 600

Found = dict[str, dict[int, dict[int, dict[str, Any]]]]
"""By layout, number of ranks and pairs of a batch: seconds of a step, milliseconds by phase."""


def here(threads: int) -> Runtime:
    """The rank that `run_on_ranks` made, with so many threads."""
    quiet_dependencies()
    torch.set_num_threads(threads)
    return Runtime(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))


def _both(
    path: Path, layout: LayoutName, batch_sizes: tuple[int, ...], rounds: int, steps: int
) -> dict[int, dict[int, dict[str, Any]]]:
    turns = mp.get_context("spawn").Barrier(sum(WORLDS))

    def start(world: int) -> dict[int, dict[str, Any]]:
        try:
            return run_on_ranks(world, _ranks, path, layout, batch_sizes, rounds, steps, turns)[0]
        except BaseException:
            turns.abort()
            raise

    with ThreadPoolExecutor(len(WORLDS)) as pool:
        return dict(zip(WORLDS, pool.map(start, WORLDS), strict=True))


def measure(path: Path, batch_sizes: tuple[int, ...], rounds: int, steps: int) -> Found:
    """Both numbers of ranks stand ready, and take turns.

    Args:
        path: of the prepared dataset. batch_sizes: pairs of all ranks.
    """
    found: Found = {}
    for layout in LAYOUTS:
        found[layout] = _both(path, layout, batch_sizes, rounds, steps)
    return found


def _ranks(
    path: Path, layout: LayoutName, batch_sizes: tuple[int, ...], rounds: int, steps: int, turns: Any
) -> dict[int, dict[str, Any]]:
    """One rank of either number of ranks: waits for its turns, and measures at them."""
    world = dist.get_world_size()
    place, dataset = here(THREADS // world), PreparedDataset.open(path)
    sharding = ShardingConfig(default=layout)
    systems = {size: Ours(dataset, size // world, "auto", place, sharding=sharding) for size in batch_sizes}
    for system in systems.values():
        timed(system.step, WARMUP)
        system.trainer.steps.clock.read()
    seconds: dict[int, list[float]] = {size: [] for size in batch_sizes}
    for turn, size in _schedule(batch_sizes, rounds):
        turns.wait(PATIENCE_S)
        if turn == world:
            seconds[size].append(timed(systems[size].step, steps))
    turns.wait(PATIENCE_S)
    found = {
        size: {"seconds": statistics.median(seconds[size]), "phases": system.trainer.steps.clock.read()}
        for size, system in systems.items()
    }
    for system in systems.values():
        system.close()
    return found


def _schedule(batch_sizes: tuple[int, ...], rounds: int) -> Iterator[tuple[int, int]]:
    """Whose turn it is, and with which batches."""
    return ((world, size) for _ in range(rounds) for size in batch_sizes for world in WORLDS)


def scaling(found: Found, alone: int, shared: int) -> dict[str, float]:
    """By layout, pairs a second of two ranks at a batch of `shared` over those of one rank at `alone`."""
    return {
        layout: (shared / worlds[2][shared]["seconds"]) / (alone / worlds[1][alone]["seconds"])
        for layout, worlds in found.items()
    }
