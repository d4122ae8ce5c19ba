"""torchrec-mt compare RUN_A RUN_B: is one run's model better than another's, by how much, is it chance?
torchrec-mt compare GRID.toml: runs an experiment, methods x seeds, and says what came of it.

Pairs the two runs anchor by anchor, from the RUN/evaluation/anchors.parquet that `torchrec-mt evaluate` wrote. Every
difference is RUN_A minus RUN_B. Of another judgement (the validation split, the last model, other baselines) give the
file in place of the run: RUN/evaluation/anchors-valid.parquet.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import UserError, run_program
from torchrec_mt.reporting.comparison import comparison_table
from torchrec_mt.reporting.grid import grid_markdown, grid_tables
from torchrec_mt.reporting.grid_page import grid_page
from torchrec_mt.reporting.terminal import console, progress_console
from torchrec_mt.retrieval.comparison import Judgement, compare_runs
from torchrec_mt.retrieval.records import records_path
from torchrec_mt.runs import MARK, RunFolder, write_atomic
from torchrec_mt.storage import local_copy
from torchrec_mt.training.preemption import preemption
from torchrec_mt.workflows.grid import Done, begin, check_kept, run_cells
from torchrec_mt.workflows.grid_config import Cell, Grid, cells_of, check_datasets, load_grid
from torchrec_mt.workflows.grid_jobs import run_in_jobs
from torchrec_mt.workflows.grid_results import grid_results
from torchrec_mt.workflows.grid_turns import AskedToEndError

_PARTS = (MARK, "evaluation")
"""What is read of a run that a URL names."""
_FILE = ".parquet"
"""How the name of a judgement's file ends."""


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(prog="torchrec-mt compare", description=__doc__)
    parser.add_argument(
        "first",
        metavar="RUN_A",
        help="a run folder that `torchrec-mt evaluate` judged, or a file of anchors; a path or a URL",
    )
    parser.add_argument("second", metavar="RUN_B", nargs="?", help="another one, judged on the same dataset")
    parser.add_argument("--task", dest="tasks", action="append", default=[], help="repeatable; default: all tasks")
    parser.add_argument(
        "--metric", dest="metrics", action="append", default=[], help="repeatable; default: the main metrics of RUN_A"
    )
    parser.add_argument(
        "--only", metavar="METHOD", action="append", default=[], help="of an experiment: these methods; repeatable"
    )
    parser.add_argument(
        "--jobs", metavar="N", type=_jobs, default=1, help="of an experiment: so many cells at once, on this machine"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    return parser


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 1 to 1024")
    return int(text)


def _judgement(place: str) -> Judgement:
    """The default judgement of a run, or the one whose file is named."""
    file = Path(local_copy(place) if place.endswith(_FILE) else place)
    if not file.is_file():
        file = records_path(RunFolder.open(place, parts=_PARTS).evaluation_path)
    return Judgement.open(place, file)


def _refuse(arguments: argparse.Namespace, *, of_runs: bool) -> None:
    """Arguments of runs beside an experiment, and the other way round, would be ignored."""
    given = {"RUN_B": arguments.second, "--task": arguments.tasks, "--metric": arguments.metrics}
    if not of_runs:
        given = {"--only": arguments.only, "--jobs": arguments.jobs > 1}
    ignored = [name for name, value in given.items() if value]
    if ignored:
        what = "an experiment: its file says what is compared" if of_runs else "no experiment (GRID.toml)"
        raise UserError(f"'{arguments.first}' is {what}: leave out {', '.join(ignored)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    if arguments.first.endswith(".toml"):
        _refuse(arguments, of_runs=True)
        return _experiment(arguments)
    _refuse(arguments, of_runs=False)
    if arguments.second is None:
        raise UserError(f"compare '{arguments.first}' with what? Give a second run, or an experiment (GRID.toml)")
    first, second = _judgement(arguments.first), _judgement(arguments.second)
    compared = compare_runs(first, second, tasks=arguments.tasks, metrics=arguments.metrics)
    if arguments.json:
        print(json.dumps(compared, allow_nan=False))
    else:
        console().print(comparison_table(compared))
    return 0


def _experiment(arguments: argparse.Namespace) -> int:
    grid = load_grid(arguments.first)
    cells = cells_of(grid, arguments.only, file=arguments.first)
    check_datasets(cells, file=arguments.first)
    output = Path(grid.output)
    try:
        done = _in_jobs(grid, cells, arguments.jobs) if arguments.jobs > 1 else _here(grid, cells, not arguments.json)
    except AskedToEndError as asked:
        _tell(f"asked to end; to go on from '{asked.place}': torchrec-mt compare {arguments.first}")
        return 0
    if not done:
        return 0  # the main rank speaks
    results = grid_results(grid, done)
    if not arguments.only:  # what is told of all methods stays
        write_atomic(output / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
        write_atomic(output / "results.md", grid_markdown(results))
        write_atomic(output / "results.html", grid_page(results))
    if arguments.json:
        print(json.dumps(results, allow_nan=False))
        return 1 if results["failed"] else 0
    console().print(grid_tables(results))
    page = f"page: {output / 'results.html'}" if not arguments.only else "for its page call without --only"
    console().print(f"experiment: {output}   {page}", soft_wrap=True)
    return 1 if results["failed"] else 0


def _here(grid: Grid, cells: Sequence[Cell], show: bool) -> list[Done]:
    """Cell by cell in this process, or on all ranks of its job; nothing but on the main rank."""
    with runtime(cells[0].config.runtime) as here, preemption() as noted:
        on_main(lambda: check_kept(cells))
        on_main(lambda: begin(grid))
        if here.is_main:
            return run_cells(cells, here, show=show, tell=_tell, asked=lambda: noted.asked)
        with suppress(AskedToEndError):
            run_cells(cells, here, show=show, asked=lambda: noted.asked)
        return []


def _in_jobs(grid: Grid, cells: Sequence[Cell], jobs: int) -> list[Done]:
    check_kept(cells)
    begin(grid)
    with preemption() as noted:
        return run_in_jobs(cells, jobs, tell=_tell, asked=lambda: noted.asked)


def _tell(line: str) -> None:
    progress_console().print(line, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_program(main)
