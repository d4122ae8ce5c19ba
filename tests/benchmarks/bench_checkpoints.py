"""Saving and loading a table of 1 GB on one rank, beside `dd` of the same bytes with fsync on the same disk.

    python -W ignore -m tests.benchmarks.bench_checkpoints [FOLDER]

FOLDER is on the disk to measure (the temporary one where none is given) and needs 4 GB. Rounds are interleaved, medians
are told. Loads are measured from the system's cache and from the disk, where each reading begins with none of the file
in the cache, and `dd` and we take turns at being first. Prints a table, and as its last line one JSON object.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from torchrec_mt.distributed.pieces import Pieces
from torchrec_mt.distributed.runtime import RuntimeConfig, runtime
from torchrec_mt.training.checkpoints.store import CheckpointStore

ROWS, DIM, ROUNDS = 4_000_000, 64, 5


def dd(source: Path, target: str, *options: str) -> None:
    """Copies as fast as the system can."""
    subprocess.run(["dd", f"if={source}", f"of={target}", "bs=8M", *options], check=True, capture_output=True)


def forget(files: list[Path]) -> None:
    """Lets the system drop the files, which are on the disk, from its cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def measure(folder: Path, rows: int = ROWS, rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds, the median of the rounds; of the first save in the background apart, which takes its memory."""
    store = CheckpointStore(folder / "checkpoints", keep=1)
    table_ND = torch.randn(rows, DIM)
    tensors = {"table": Pieces((rows, DIM), torch.float32, [((0, 0), table_ND)])}
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, function: Callable[..., Any], *given: Any) -> None:
        start = time.perf_counter()
        function(*given)
        seconds[name].append(time.perf_counter() - start)

    def save(step: int, background: bool = False) -> None:
        store.save(step, tensors, state={}, rank_state={}, background=background)

    def load() -> None:
        store.load_newest({"table": found_ND})

    def read() -> None:
        [file] = (folder / "checkpoints").glob("*/*.safetensors")
        dd(file, "/dev/null")

    found_ND = torch.zeros_like(table_ND)
    for step in range(0, 2 * rounds, 2):
        timed("save", save, step)
        [file] = (folder / "checkpoints").glob("*/*.safetensors")
        timed("dd", dd, file, str(folder / "copy"), "conv=fsync")
        (folder / "copy").unlink()
        timed("load, cached", load)
        timed("dd, reading, cached", read)
        for name, function in (("load", load), ("dd, reading", read))[:: 1 if step % 4 else -1]:
            forget([file for file in (folder / "checkpoints").rglob("*") if file.is_file()])
            timed(name, function)
        timed("first blocked" if step == 0 else "blocked", save, step + 1, True)
        timed("rest in the background", store.finish)
    if not torch.equal(found_ND, table_ND):
        raise SystemExit("what was loaded is not what was saved")
    store.close()
    return {name: statistics.median(values) for name, values in seconds.items()}


def gigabytes(rows: int = ROWS) -> float:
    """Of the table."""
    return rows * DIM * 4 / 1e9


def show(seconds: dict[str, float], gb: float) -> None:
    """The table."""
    table = Table("", "seconds", "GB/s", box=None)
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{gb / value:.2f}")
    console = Console()
    console.print(table)
    if seconds["dd, reading"] < 1.2 * seconds["dd, reading, cached"]:
        console.print("`dd` is as fast where the file should be out of the cache: it may still be there")


def ratios(seconds: dict[str, float], gb: float) -> dict[str, float]:
    """The machine-readable last line: speeds over those of `dd`, GB a second, seconds that training is held up."""
    figures = {
        "save_over_dd": seconds["dd"] / seconds["save"],
        "load_over_dd": seconds["dd, reading"] / seconds["load"],
        "load_over_dd_cached": seconds["dd, reading, cached"] / seconds["load, cached"],
        "save_gb_per_s": gb / seconds["save"],
        "load_gb_per_s": gb / seconds["load"],
        "blocked_s": seconds["blocked"],
    }
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    root = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=root) as folder, runtime(RuntimeConfig(device="cpu", threads=1)):
        seconds = measure(Path(folder))
    show(seconds, gigabytes())
    print(json.dumps(ratios(seconds, gigabytes())))


if __name__ == "__main__":
    main()
