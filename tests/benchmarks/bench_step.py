"""`make bench-step`: one training step beside plain PyTorch, in one process; medians of interleaved rounds.

Prints a table, and as its last line one JSON object of ratios (see docs/benchmarks.md).
"""

import ctypes
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.dataset import DIM, ONE_TASK, ROWS, bench_schema, write_bench_dataset
from tests.benchmarks.plain import PlainTraining, plain_batches
from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.balancing.config import BalancingConfig
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import InBatch, NegativesConfig
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.runtime import Runtime, RuntimeConfig, runtime
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.losses.walk import Precision, product_dtype
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.job import task_sides
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.optim import OptimConfig, Optimizers
from torchrec_mt.training.trainer import Keep, Trainer, TrainerConfig

SIZES = (1024, 4096, 16384)
_LOG_EVERY = TrainerConfig().log_every
ROUNDS, PAIRS_PER_ROUND, WARMUP = 5, 65_536, 3


class Peak:
    """Highest resident memory of the process while it is open, above what it held before: bytes."""

    def __enter__(self) -> "Peak":
        give_back()  # what earlier steps left
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest mark so far
        self._before = status("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.bytes = status("VmHWM") - self._before


def give_back() -> None:
    """Gives memory that nothing holds any more back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def status(key: str) -> int:
    """Bytes of this process, by the kernel's name ("VmRSS")."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


class Ours:
    """The project's own reader, model and trainer at a batch size (of each rank) and precision."""

    def __init__(
        self,
        dataset: PreparedDataset,
        batch_size: int,
        precision: Precision,
        here: Runtime,
        *,
        dim: int = DIM,
        tasks: Mapping[str, str] = ONE_TASK,
        sharding: ShardingConfig | None = None,
        keep: Keep | None = None,
    ) -> None:
        schema, losses = bench_schema(dim, tasks), LossConfig(precision=precision)
        negatives, optim = NegativesConfig(sources=(InBatch(),)), OptimConfig()
        self.model, _ = build_model(
            dataset.manifest,
            schema,
            ModelConfig(),
            sharding or ShardingConfig(),
            losses=losses,
            runtime=here,
            seed=0,
            batch_rows=2 * batch_size,
            table_rate=optim.table_rate,
        )
        self.optimizers = Optimizers(optim, self.model, 1000)
        self.balancer = Balancer(BalancingConfig(), list(schema.tasks))
        self.objective = Objective(task_sides(dataset.manifest, schema), losses, negatives, here.device)
        self.trainer = Trainer(
            TrainerConfig(),
            self.model,
            self.optimizers,
            objective=self.objective,
            balancer=self.balancer,
            runtime=here,
            validate=lambda: {},
            log=lambda step, kind, values: None,
            offending_path=lambda: Path("unused"),
            keep=keep,
        )
        config = ReaderConfig(batch_size=batch_size)
        self.reader = Reader(
            config, dataset, schema, negatives=negatives, seed=0, rank=here.rank, world_size=here.world_size
        )
        self._batches = iter(self.reader)
        self._number = 0

    def step(self) -> None:
        logs = self._number % _LOG_EVERY == 0  # as the trainer: a step that logs looks at the tasks' gradients, too
        self.trainer.steps.step(self._batches, self._number, logs=logs)
        self._number += 1

    def close(self) -> None:
        self._batches.close()  # type: ignore[attr-defined]


def timed(step: Callable[[], Any], steps: int) -> float:
    """Seconds per step."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def measure(dataset: PreparedDataset, batch_size: int, here: Any) -> dict[str, dict[str, Any]]:
    """Pairs per second, peak memory of a step and time by phase of each system at one batch size."""
    steps = max(4, PAIRS_PER_ROUND // batch_size)
    ready = plain_batches(dataset, batch_size, steps)
    plain = PlainTraining(ROWS)
    ours = {name: Ours(dataset, batch_size, name, here) for name in ("float32", "auto")}
    position = iter(range(1 << 30))
    systems: dict[str, Callable[[], Any]] = {"plain": lambda: plain.step(ready[next(position) % steps])}
    systems |= {name: system.step for name, system in ours.items()}
    for step in systems.values():
        timed(step, WARMUP)
    for system in ours.values():
        system.trainer.steps.clock.read()
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(ROUNDS):
        for name, step in systems.items():
            seconds[name].append(timed(step, steps))
    result: dict[str, dict[str, Any]] = {}
    for name, step in systems.items():
        with Peak() as peak:
            timed(step, 2)
        result[name] = {"seconds": statistics.median(seconds[name]), "peak": peak.bytes, "phases": {}}
    for name, system in ours.items():
        result[name]["phases"] = system.trainer.steps.clock.read()
        system.close()
    return result


def show(results: dict[int, dict[str, dict[str, Any]]]) -> None:
    """The table."""
    phases = list(results[SIZES[0]]["auto"]["phases"])
    table = Table("B", "system", "pairs/s", "ratio", "peak MiB", *(f"{phase} ms" for phase in phases), box=None)
    for batch_size, systems in results.items():
        for name, found in systems.items():
            ratio = systems["plain"]["seconds"] / found["seconds"]
            cells = [f"{found['phases'][phase]:.1f}" if found["phases"] else "" for phase in phases]
            rate = f"{batch_size / found['seconds']:,.0f}"
            table.add_row(f"{batch_size:,}", name, rate, f"{ratio:.2f}", f"{found['peak'] / 2**20:,.0f}", *cells)
    Console(width=160).print(table)


def distinct(dataset: PreparedDataset, batch_size: int) -> float:
    """Distinct products in a batch, as a share of its pairs: what encoding each once can save."""
    ready = plain_batches(dataset, batch_size, 4)
    return statistics.mean(len(batch["product_id"].unique()) / batch_size for batch in ready)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, runtime(RuntimeConfig()) as here:
        dataset = write_bench_dataset(Path(folder))
        results = {}
        for batch_size in SIZES:
            results[batch_size] = measure(dataset, batch_size, here)
            gc.collect()
        show(results)
        share = {f"distinct_products_{size}": round(distinct(dataset, size), 3) for size in SIZES}
        print(json.dumps(ratios(results, here.device) | share))


def ratios(results: dict[int, dict[str, dict[str, Any]]], device: torch.device) -> dict[str, Any]:
    """The machine-readable last line: speeds over plain PyTorch, memory of ours over plain's, share of data waits."""
    has_bfloat16 = product_dtype("auto", device) == torch.bfloat16
    line: dict[str, Any] = {"auto_is": "bfloat16" if has_bfloat16 else "float32"}
    for batch_size, systems in results.items():
        for name in ("float32", "auto"):
            line[f"ratio_{name}_{batch_size}"] = round(systems["plain"]["seconds"] / systems[name]["seconds"], 3)
        line[f"memory_ratio_{batch_size}"] = round(systems["auto"]["peak"] / max(1, systems["plain"]["peak"]), 4)
    phases = results[4096]["auto"]["phases"]
    line["data_wait_share"] = round(phases["data"] / sum(phases.values()), 4)
    return line


if __name__ == "__main__":
    main()
