"""torchrec-mt sweep SWEEP.toml: searches config keys for the best validation, trial by trial, with Optuna.

Each trial is an ordinary run in OUTPUT/trial-NNNN; unpromising ones end early. A sweep that was stopped, by whatever,
goes on when it is called again. The best values end as OUTPUT/best.toml, a config file to add to the base.

torchrun --nproc_per_node 2 -m torchrec_mt.sweep launch/sweeps/demo.toml
"""

import argparse
from collections.abc import Sequence

from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import run_program
from torchrec_mt.reporting.sweep import sweep_tables
from torchrec_mt.reporting.terminal import console, progress_console
from torchrec_mt.training.preemption import preemption
from torchrec_mt.workflows.grid_turns import AskedToEndError
from torchrec_mt.workflows.sweep import BEST, run_sweep
from torchrec_mt.workflows.sweep_config import load_sweep
from torchrec_mt.workflows.sweep_results import to_json
from torchrec_mt.workflows.sweep_study import check_optuna


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(
        prog="torchrec-mt sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sweep", metavar="SWEEP.toml", help="what is searched, within what, how long: docs/experiments.md"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    check_optuna()
    sweep = load_sweep(arguments.sweep)
    show = not arguments.json
    with runtime(sweep.config({}).runtime) as here, preemption() as noted:

        def tell(line: str) -> None:
            if show and here.is_main:
                progress_console().print(line, highlight=False, markup=False, soft_wrap=True)

        try:
            results = run_sweep(sweep, here, show=show, tell=tell, asked=lambda: noted.asked)
        except AskedToEndError as asked:
            tell(f"asked to end; to go on from '{asked.place}': torchrec-mt sweep {arguments.sweep}")
            return 0
        if not here.is_main:
            return 0  # the main rank speaks
    if arguments.json:
        print(to_json(results))
    else:
        console().print(sweep_tables(results))
        where = f"   best: {sweep.output}/{BEST}" if results["best"] else ""
        console().print(f"sweep: {sweep.output}{where}", markup=False, soft_wrap=True)
    return 0 if results["best"] else 1


if __name__ == "__main__":
    run_program(main)
