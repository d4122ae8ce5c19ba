"""torchrec-mt twins RUN: does one model for several tasks cost a task anything? The run beside one model per task.

Trains, for every task, its twin into RUN/twins/TASK: the run's own config on that task alone, with as many pairs of it
in as many steps. Twins that are there are kept, unless the run's config has changed; those that were stopped go on. Run
and twins are judged alike and compared anchor by anchor, into RUN/twins/comparison.json.

torchrun --nproc_per_node 2 -m torchrec_mt.twins runs/demo
"""

import argparse
import json
from collections.abc import Sequence

from torchrec_mt.config import add_set_argument, check_config, check_keys
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import run_program
from torchrec_mt.reporting.comparison import twins_table
from torchrec_mt.reporting.terminal import console, progress_console
from torchrec_mt.runs import TWINS_COMPARISON, RunFolder
from torchrec_mt.training.preemption import preemption
from torchrec_mt.workflows.twin_plan import twin_tasks
from torchrec_mt.workflows.twins import SETTABLE, compare_with_twins


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(
        prog="torchrec-mt twins", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run folder that `torchrec-mt train` wrote to its end, or its URL")
    parser.add_argument("--tasks", metavar="NAMES", help="names of trained tasks with commas between them; default all")
    add_set_argument(parser, example="evaluate.split=valid", keys=SETTABLE)
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    check_keys(arguments.overrides, SETTABLE)
    run = RunFolder.open(arguments.run)
    config = check_config(run.config_json(), arguments.overrides, where=str(run.path))
    tasks = twin_tasks(config, arguments.tasks, run.where)
    show = not arguments.json
    with runtime(config.runtime) as here, preemption() as noted:

        def tell(line: str) -> None:
            if show and here.is_main:
                progress_console().print(line, highlight=False, markup=False, soft_wrap=True)

        compared = compare_with_twins(run, config, here, tasks, show=show, tell=tell, asked=lambda: noted.asked)
    if not here.is_main:
        return 0  # the main rank speaks
    if arguments.json:
        print(json.dumps(compared, allow_nan=False))
    elif "interrupted" in compared:
        console().print(
            f"asked to end: the twin of {compared['twin']} stopped after step {compared['steps']}, to go on: "
            f"torchrec-mt twins {run.where}",
            markup=False,
            soft_wrap=True,
        )
    else:
        console().print(twins_table(compared))
        console().print(f"run: {run.where}   comparison: {run.path / TWINS_COMPARISON}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_program(main)
