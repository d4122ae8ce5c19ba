"""torchrec-mt train CONFIG.toml ... --output FOLDER: trains the unified model on a prepared dataset, in this process or
under torchrun.

torchrun --nproc_per_node 2 -m torchrec_mt.train launch/demo.toml
torchx run -s local_cwd dist.ddp -j 1x2 -m torchrec_mt.train -- launch/demo.toml

A run that was stopped, by whatever, goes on with --resume RUN. SIGTERM ends it after a checkpoint. A new run starts
from the weights of an earlier one with --init-from RUN.
"""

import argparse
import json
from collections.abc import Sequence

from torchrec_mt.config import (
    RunConfig,
    add_config_arguments,
    check_config,
    check_keys,
    load_config,
)
from torchrec_mt.data.preparation import check_schema
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import run_program
from torchrec_mt.reporting.terminal import console
from torchrec_mt.runs import PARTS, RunFolder
from torchrec_mt.training.preemption import preemption
from torchrec_mt.workflows.training import RESUMED, train_here


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(
        prog="torchrec-mt train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser, nargs="*")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help=f"go on with a run that was stopped, instead of CONFIG: its own config, of which --set can change "
        f"{', '.join(RESUMED)}",
    )
    parser.add_argument(
        "--init-from",
        metavar="RUN",
        help="start from another run's best weights: rows of tables are found again by their value, so vocabularies "
        "may have grown",
    )
    parser.add_argument("--output", help="the run folder to write, or a URL such as s3://bucket/run; default runs/NAME")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in that folder")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    return parser


def train_run(
    config: RunConfig,
    run_path: str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    init_from: str | None = None,
    show: bool = True,
) -> dict[str, object] | None:
    """Trains into a run folder. Returns the outcome (best step and metric, steps, path), on the main rank.

    Args:
        resume: go on with the run in the folder. init_from: a run whose weights a new one starts from.
    """
    with runtime(config.runtime) as here, preemption() as noted:
        check_schema(config.dataset)
        outcome = train_here(
            config,
            run_path,
            here,
            overwrite=overwrite,
            resume=resume,
            init_from=init_from,
            show=show,
            asked=lambda: noted.asked,
        )
        return outcome if here.is_main else None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if bool(arguments.config) == bool(arguments.resume):
        parser.error("give CONFIG files to start a run, or --resume RUN to go on with one")
    if arguments.resume:
        if arguments.output or arguments.overwrite or arguments.init_from:
            parser.error("--resume goes on with the run as it is: leave out --output, --overwrite and --init-from")
        run_path = arguments.resume
        check_keys(arguments.overrides, RESUMED)
        settled = RunFolder.open(run_path, parts=PARTS).config_json()
        config = check_config(settled, arguments.overrides, where=run_path)
    else:
        config = load_config(arguments.config, arguments.overrides)
        run_path = arguments.output or f"runs/{config.dataset.name}"
    outcome = train_run(
        config,
        run_path,
        overwrite=arguments.overwrite,
        resume=bool(arguments.resume),
        init_from=arguments.init_from,
        show=not arguments.json,
    )
    if outcome is not None and arguments.json:
        print(json.dumps(outcome))
    elif outcome is not None and "nothing_left" in outcome:
        console().print(f"nothing left to do in {outcome['run']}: {outcome['nothing_left']}", soft_wrap=True)
    elif outcome is not None and outcome["interrupted"]:
        console().print(
            f"asked to end: stopped after step {outcome['steps']}, to go on: torchrec-mt train --resume {run_path}",
            soft_wrap=True,
        )
    elif outcome is not None:
        console().print(f"trained {outcome['steps']} steps, best at step {outcome['best_step']}: run {outcome['run']}")
    return 0


if __name__ == "__main__":
    run_program(main)
