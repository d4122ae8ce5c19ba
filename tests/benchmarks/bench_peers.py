"""`make bench-peers`: the training step beside TensorFlow Recommenders, each in its own process, one after the other.

Prints a table, and as its last line one JSON object of ratios (see docs/benchmarks.md). Rounds are interleaved: ours,
theirs, ours, theirs, ...; medians of the rounds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.benchmarks.bench_step import Ours, timed
from tests.benchmarks.dataset import DIM, ROWS, write_bench_dataset
from tests.benchmarks.plain import plain_batches
from torchrec_mt.distributed.runtime import RuntimeConfig, runtime

BATCH_SIZE, STEPS, ROUNDS = 4096, 16, 3


def theirs(python: str, batches: Path) -> dict[str, float]:
    """Seconds per step of TFRS, in its own environment, on the same ready batches as plain PyTorch gets."""
    settings = {
        "batches": str(batches),
        "rows": ROWS,
        "dim": DIM,
        "hidden": 128,
        "batch_size": BATCH_SIZE,
        "steps": STEPS,
        "rounds": 3,
    }
    command = [python, str(Path(__file__).with_name("tfrs_step.py")), json.dumps(settings)]
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"TFRS failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    python = sys.argv[1]
    seconds: dict[str, list[float]] = {"ours, float32": [], "ours, auto": [], "TFRS": []}
    with tempfile.TemporaryDirectory() as folder, runtime(RuntimeConfig()) as here:
        dataset = write_bench_dataset(Path(folder))
        ready = plain_batches(dataset, BATCH_SIZE, STEPS)
        stacked = {name: np.stack([batch[name].numpy() for batch in ready]) for name in ready[0]}
        np.savez(Path(folder) / "batches.npz", **{n: x if "words" in n else x[..., 0] for n, x in stacked.items()})
        ours = {name: Ours(dataset, BATCH_SIZE, name, here) for name in ("float32", "auto")}
        for system in ours.values():
            timed(system.step, 3)
        for _ in range(ROUNDS):
            for name, system in ours.items():
                seconds[f"ours, {name}"].append(timed(system.step, STEPS))
            found = theirs(python, Path(folder) / "batches.npz")
            seconds["TFRS"].append(found["seconds"])
        for system in ours.values():
            system.close()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    table = Table("system", "pairs/s", "over TFRS", title=f"one step, B = {BATCH_SIZE:,}", box=None)
    for name, value in medians.items():
        table.add_row(name, f"{BATCH_SIZE / value:,.0f}", f"{medians['TFRS'] / value:.2f}")
    Console(width=100).print(table)
    line = {f"step_over_tfrs_{name}": round(medians["TFRS"] / medians[f"ours, {name}"], 3) for name in ours}
    print(json.dumps(line | {"tensorflow": found["tensorflow"]}))


if __name__ == "__main__":
    main()
