"""`make bench-peers`: a training step and exact top-k beside TensorFlow Recommenders, each in its own process.

Prints a table, and as its last line one JSON object of ratios (see docs/benchmarks.md). Rounds are interleaved: ours,
theirs, ours, theirs, ...; medians of the rounds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.benchmarks.bench_step import Ours, timed
from tests.benchmarks.bench_topk import ANCHORS, unit_vectors
from tests.benchmarks.dataset import DIM, ROWS, write_bench_dataset
from tests.benchmarks.plain import plain_batches
from torchrec_mt.distributed.runtime import RuntimeConfig, runtime
from torchrec_mt.retrieval.topk import Catalogue

BATCH_SIZE, STEPS, ROUNDS = 4096, 16, 3
CANDIDATES, K = 100_000, 100


def theirs(python: str, batches: Path) -> dict[str, Any]:
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
    return asked(python, "tfrs_step.py", settings)


def asked(python: str, script: str, settings: dict[str, object]) -> dict[str, Any]:
    """What a script of the peers' environment says."""
    command = [python, str(Path(__file__).with_name(script)), json.dumps(settings)]
    environment = os.environ | {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"TFRS failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_topk(python: str, folder: Path) -> dict[str, float]:
    """Seconds of each system for the k best of a catalogue, rounds interleaved; the best row is the same.

    Raises:
        SystemExit: it is not.
    """
    anchor_BD, vector_ND = unit_vectors(ANCHORS, 1), unit_vectors(CANDIDATES, 2)
    np.savez(folder / "vectors.npz", anchors=anchor_BD.numpy(), candidates=vector_ND.numpy())
    catalogues = {name: Catalogue(vector_ND, precision=name) for name in ("float32", "auto")}
    seconds: dict[str, list[float]] = {**{f"ours, {name}": [] for name in catalogues}, "TFRS": []}
    for _ in range(ROUNDS):
        for name, catalogue in catalogues.items():
            rows_BK = catalogue.topk(anchor_BD, K)[1]
            seconds[f"ours, {name}"].append(timed(partial(catalogue.topk, anchor_BD, K), 5))
        found = asked(python, "tfrs_topk.py", {"vectors": str(folder / "vectors.npz"), "k": K, "rounds": 5})
        if rows_BK[:, 0].tolist() != found["first_rows"]:
            raise SystemExit("results differ from TFRS's")
        seconds["TFRS"].append(found["seconds"])
    return {name: statistics.median(values) for name, values in seconds.items()}


def show(medians: dict[str, float], unit: str, count: int, title: str) -> None:
    """A table of rates."""
    table = Table("system", unit, "over TFRS", title=title, box=None)
    for name, value in medians.items():
        table.add_row(name, f"{count / value:,.0f}", f"{medians['TFRS'] / value:.2f}")
    Console(width=100).print(table)


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
        topk = measure_topk(python, Path(folder))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    show(medians, "pairs/s", BATCH_SIZE, f"one step, B = {BATCH_SIZE:,}")
    show(topk, "anchors/s", ANCHORS, f"the {K} best of {CANDIDATES:,}, {ANCHORS} anchors at a time")
    line = {f"step_over_tfrs_{name}": round(medians["TFRS"] / medians[f"ours, {name}"], 3) for name in ours}
    line |= {f"topk_over_tfrs_{name}": round(topk["TFRS"] / topk[f"ours, {name}"], 3) for name in ours}
    print(json.dumps(line | {"tensorflow": found["tensorflow"]}))


if __name__ == "__main__":
    main()
