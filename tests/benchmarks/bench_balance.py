"""`make bench-balance`: what each method of balancing adds to a step with static weights, in one process.

One model takes all steps; methods take turns, a step at a time, and medians are compared. Times are the processor's, on
one thread: what else the machine does counts little. Prints a table, and as its last line one JSON object: method ->
overhead as a share of a step with static weights. Methods that look at gradients stand there as METHOD for the default
cut, and as METHOD@vectors.
"""

import json
import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.bench_step import Ours
from tests.benchmarks.dataset import THREE_TASKS, write_bench_dataset
from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.balancing.choice import Method
from torchrec_mt.balancing.config import BalancingConfig
from torchrec_mt.balancing.methods import (
    AlignedMtl,
    CaGrad,
    Dwa,
    Famo,
    GradNorm,
    ImtlG,
    Log,
    MetaBalance,
    Mgda,
    MultiBalance,
    NashMtl,
    PcGrad,
    Static,
    Uncertainty,
    UpGrad,
)
from torchrec_mt.distributed.runtime import RuntimeConfig, runtime
from torchrec_mt.models.two_tower import TwoTower
from torchrec_mt.training.weighing import Weighing

BATCH_SIZE, BATCHES, WARMUP, ROUNDS = 4096, 7, 1, 21
LOSS_SIDE: tuple[Method, ...] = (Static(), Uncertainty(), Dwa(), Log(), Famo())
GRADIENT_SIDE: tuple[Method, ...] = (
    GradNorm(),
    PcGrad(),
    CaGrad(),
    Mgda(),
    NashMtl(),
    UpGrad(),
    AlignedMtl(),
    ImtlG(),
    MultiBalance(),
    MetaBalance(target="search"),
)


def configs() -> dict[str, BalancingConfig]:
    """What is compared, by name."""
    return (
        {method.kind: BalancingConfig(method=method) for method in LOSS_SIDE}
        | {f"{method.kind}@vectors": BalancingConfig(method=method, cut="vectors") for method in GRADIENT_SIDE}
        | {method.kind: BalancingConfig(method=method) for method in GRADIENT_SIDE}
    )


def measure(system: Ours) -> dict[str, float]:
    """Median milliseconds of a step by name; "logged" is static with what a line of the log tells."""
    batches = cycle(list(islice(system.reader, BATCHES)))
    model = next(module for module in system.model.modules() if isinstance(module, TwoTower))
    found = {name: Weighing(Balancer(config, list(THREE_TASKS)), model) for name, config in configs().items()}
    found["logged"] = Weighing(Balancer(BalancingConfig(), list(THREE_TASKS)), model)
    times: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(WARMUP + ROUNDS):
        for name, weighing in found.items():
            system.trainer.steps.weighing = weighing
            start = time.process_time()
            system.trainer.steps.step(batches, turn, logs=name == "logged")
            if turn >= WARMUP:
                times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, runtime(RuntimeConfig(threads=1)) as here:
        dataset = write_bench_dataset(Path(folder), pairs=200_000, tasks=THREE_TASKS)
        system = Ours(dataset, BATCH_SIZE, "auto", here, tasks=THREE_TASKS)
        times = measure(system)
        system.close()
    overheads = {name: value / times["static"] - 1 for name, value in times.items()}
    table = Table("method", "ms a step", "overhead", box=None)
    for name, value in times.items():
        table.add_row(name, f"{value:.1f}", f"{overheads[name]:+.1%}")
    Console(width=120).print(table)
    print(json.dumps({name: round(value, 4) for name, value in overheads.items()}))


if __name__ == "__main__":
    main()
