"""`make bench-scale`: what grows with ranks, rows and checkpoints; parts in processes of their own, medians of turns.

    python -W ignore -m tests.benchmarks.bench_scale [FOLDER] [--smoke]

FOLDER is on the disk to measure (the temporary one where none is given) and needs 5 GB; the machine 24 GiB. `--smoke`
runs the same on tiny sizes, whose figures mean nothing. Prints tables, and as its last line one JSON object of ratios
(see docs/benchmarks.md).
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import bench_checkpoints, scale_ranks, scale_rows, scale_save
from tests.benchmarks.dataset import write_bench_dataset
from tests.ranks import run_on_ranks


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything.

    Args:
        entities: queries and products, each, of the dataset with tables of 64. batch: pairs of all ranks. steps: of a
            round. rows: of the growing table. saved: rows of the one that is saved. beside: entities beside that table.
        checkpoint_rows, checkpoint_rounds: of the table beside `dd`. saves: that training does not wait for.
    """

    entities: int = 1_000_000
    batch: int = 4096
    rounds: int = 7
    steps: int = 12
    rows: tuple[int, ...] = (10**5, 10**6, 10**7, 10**8)
    saved: int = 10**7
    beside: int = 250_000
    checkpoint_rows: int = bench_checkpoints.ROWS
    checkpoint_rounds: int = bench_checkpoints.ROUNDS
    saves: int = 5


SMOKE = Sizes(
    entities=500,
    batch=64,
    rounds=1,
    steps=2,
    rows=(100, 1000),
    saved=1000,
    beside=100,
    checkpoint_rows=100,
    checkpoint_rounds=2,
    saves=2,
)


@dataclass(frozen=True, kw_only=True)
class Results:
    """Of the four parts, as each tells them."""

    ranks: scale_ranks.Found
    rows: scale_rows.Found
    checkpoints: dict[str, float]
    save: scale_save.Found


def measure(folder: Path, sizes: Sizes) -> Results:
    """All parts, one after the other."""
    (folder / "dataset").mkdir()
    write_bench_dataset(folder / "dataset", rows=sizes.entities, pairs=sizes.entities)
    for name in ("rows", "checkpoints", "save"):
        (folder / name).mkdir()
    batches = (sizes.batch, 2 * sizes.batch)
    row_sizes = (sizes.rows, sizes.saved, sizes.beside, sizes.batch, sizes.rounds, sizes.steps)
    save_sizes = (sizes.batch, sizes.saves, sizes.steps)
    return Results(
        ranks=scale_ranks.measure(folder / "dataset", batches, sizes.rounds, sizes.steps),
        rows=run_on_ranks(1, scale_rows.measure, folder / "rows", *row_sizes)[0],
        checkpoints=run_on_ranks(
            1, bench_checkpoints.measure, folder / "checkpoints", sizes.checkpoint_rows, sizes.checkpoint_rounds
        )[0],
        save=run_on_ranks(1, scale_save.measure, folder / "dataset", folder / "save", *save_sizes)[0],
    )


def show(results: Results, sizes: Sizes) -> None:
    """The tables."""
    console = Console(width=200)
    for table in (_ranks(results.ranks), _rows(results.rows), _save(results.save)):
        console.print(table)
        console.print()
    bench_checkpoints.show(results.checkpoints, bench_checkpoints.gigabytes(sizes.checkpoint_rows))


def _phases(found: dict[str, Any]) -> list[str]:
    return [f"{milliseconds:.1f}" for milliseconds in found["phases"].values()]


def _ranks(found: scale_ranks.Found) -> Table:
    any_one = next(iter(next(iter(found.values()))[1].values()))
    table = Table(
        "layout", "batch", "ranks", "pairs/s", "over 1 rank", *(f"{p} ms" for p in any_one["phases"]), box=None
    )
    for layout, worlds in found.items():
        for batch, alone in worlds[1].items():
            for world, sizes in worlds.items():
                ratio = alone["seconds"] / sizes[batch]["seconds"]
                rate = f"{batch / sizes[batch]['seconds']:,.0f}"
                table.add_row(layout, f"{batch:,}", f"{world}", rate, f"{ratio:.2f}", *_phases(sizes[batch]))
    return table


def _rows(found: scale_rows.Found) -> Table:
    sizes = ("expected", "built", "trained", "peak", "save", "staging")
    any_one = next(iter(found.values()))
    table = Table("rows", "step ms", *(f"{p} ms" for p in any_one["phases"]), *(f"{s} MiB" for s in sizes), box=None)
    for rows, one in found.items():
        memory = [f"{one[size] / 2**20:,.0f}" if size in one else "" for size in sizes]
        table.add_row(f"{rows:,}", f"{1000 * one['seconds']:.1f}", *_phases(one), *memory)
    return table


def _save(found: scale_save.Found) -> Table:
    table = Table("save", *(f"{name} ms" for name in found), "stall steps", "slower steps", box=None)
    for number, values in enumerate(zip(*found.values(), strict=True)):
        of = dict(zip(found, values, strict=True))
        steps = [f"{(of['blocked'] + of[name]) / of['usual']:.2f}" for name in ("first", "slower")]
        table.add_row(f"{number + 1}", *(f"{1000 * value:,.0f}" for value in values), *steps)
    return table


def ratios(results: Results, sizes: Sizes) -> dict[str, float]:
    """The machine-readable last line."""
    batch = sizes.batch
    strong = [scale_ranks.scaling(results.ranks, size, size) for size in (batch, 2 * batch)]
    seconds = [one["seconds"] for one in results.rows.values()]
    saved = results.rows[sizes.saved]
    checkpoints = bench_checkpoints.ratios(results.checkpoints, bench_checkpoints.gigabytes(sizes.checkpoint_rows))
    line = {
        "scaling_2_ranks": min(ratio for by_layout in strong for ratio in by_layout.values()),
        "weak_scaling_2_ranks": min(scale_ranks.scaling(results.ranks, batch, 2 * batch).values()),
        "cost_growth_rows": max(seconds) / min(seconds),
        "memory_over_expected": max(one["built"] / one["expected"] for one in results.rows.values()),
        "peak_over_expected": max(one["peak"] / one["expected"] for one in results.rows.values()),
        "save_memory_over_expected": saved["save"] / saved["expected"],
        "staging_memory_over_expected": saved["staging"] / saved["expected"],
        "save_over_dd": checkpoints["save_over_dd"],
        "load_over_dd": checkpoints["load_over_dd"],
        "load_over_dd_cached": checkpoints["load_over_dd_cached"],
        **scale_save.in_steps(results.save),
    }
    return {name: round(value, 3) for name, value in line.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = SMOKE if arguments.smoke else Sizes()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = measure(Path(folder), sizes)
    show(results, sizes)
    print(json.dumps(ratios(results, sizes)))


if __name__ == "__main__":
    main()
