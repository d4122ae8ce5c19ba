"""torchrec-mt train CONFIG.toml ... --output FOLDER: trains the unified model on a prepared dataset, in this process or
under torchrun.

torchrun --nproc_per_node 2 -m torchrec_mt.train launch/demo.toml
torchx run -s local_cwd dist.ddp -j 1x2 -m torchrec_mt.train -- launch/demo.toml

A run that was stopped, by whatever, goes on with --resume RUN. SIGTERM ends it after a checkpoint. A new run starts
from the weights of an earlier one with --init-from RUN.
"""

import argparse
import json
from collections.abc import Callable, Sequence

from torchrec_mt.config import (
    RunConfig,
    add_config_arguments,
    apply_overrides,
    changed_keys,
    check_config,
    check_keys,
    config_to_json,
    load_config,
)
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.preparation import check_schema
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.runtime import Runtime, runtime
from torchrec_mt.errors import UserError, run_program
from torchrec_mt.holding import job
from torchrec_mt.reporting.terminal import TrainingProgress, console
from torchrec_mt.runs import MARK, PARTS, RunFolder, restarted
from torchrec_mt.storage import Output, is_url
from torchrec_mt.training.job import train
from torchrec_mt.training.keeper import checkpoints_path, has_checkpoint
from torchrec_mt.training.preemption import preemption
from torchrec_mt.training.warm_start import Earlier

# Not what decides the meaning of a step, of the best validation so far, or which batches come.
_RESUMED = (
    *(f"trainer.{key}" for key in ("epochs", "steps", "validations", "patience", "log_every", "stuck_seconds")),
    "trainer.pipeline",
    "checkpoint.*",
    *(f"runtime.{key}" for key in ("device", "threads", "timeout_minutes")),
    "sharding.*",
    "evaluate.*",
    "reader.prefetch",
    "dataset.path",
)


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
        f"{', '.join(_RESUMED)}",
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


def train_here(
    config: RunConfig,
    run_path: str,
    here: Runtime,
    *,
    overwrite: bool = False,
    resume: bool = False,
    init_from: str | None = None,
    show: bool = True,
    asked: Callable[[], bool] = lambda: False,
) -> dict[str, object]:
    """The same in a job that was joined already, of a schema that was checked; the outcome on every rank.

    Args:
        asked: whether this rank was asked to end.
    """
    dataset = PreparedDataset.open(config.dataset.path)
    dataset.check_declaration(config.dataset)
    output = Output(run_path, mark=MARK, parts=PARTS)
    run, again = on_main(lambda: _place(config, output, overwrite=overwrite, resume=resume))
    try:
        if again:
            on_main(run.hold)
            on_main(lambda: run.check_dataset(dataset.manifest.digest, config.dataset.path))
        earlier = _earlier(init_from) if init_from else None
        with TrainingProgress(enabled=show and here.is_main) as progress:
            outcome = train(
                run,
                dataset,
                config.dataset,
                config_json=config_to_json(config),
                reader_config=config.reader,
                negatives=config.negatives,
                losses=config.loss,
                model_config=config.model,
                sharding=config.sharding,
                optim=config.optim,
                balancing=config.balancing,
                trainer_config=config.trainer,
                checkpoint=config.checkpoint,
                runtime=here,
                seed=config.runtime.seed,
                progress=progress,
                output=output,
                asked=asked,
                resume=again,
                earlier=earlier,
            )
        on_main(output.update)
        return outcome
    finally:
        run.release()


def _earlier(path: str) -> Earlier:
    run = RunFolder.open(path, parts=PARTS)
    config = check_config(run.config_json(), where=path)
    return Earlier(path=run.path, checkpoints=checkpoints_path(config.checkpoint, run), url=run.url)


def _place(config: RunConfig, output: Output, *, overwrite: bool, resume: bool) -> tuple[RunFolder, bool]:
    """The run folder, and whether to go on with what is in it: asked for, or a launcher's next try of the same job."""
    path, place = output.where, output.folder()
    run = RunFolder(place, url=path if is_url(path) else "")
    if resume:
        RunFolder.open(place)
        return run, True
    again = restarted(place)
    if again and has_checkpoint(config.checkpoint, run):
        changed = changed_keys(run.config_json(), config, but=_RESUMED)
        if changed:
            raise UserError(
                f"'{path}' holds a run of this very job, '{job()}', with another config ({', '.join(changed[:3])} "
                "differ): give another --output, or its own config to go on with it"
            )
        return run, True
    return RunFolder.create(place, overwrite=overwrite or again, url=run.url), False


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
        check_keys(arguments.overrides, _RESUMED)
        settled = RunFolder.open(run_path, parts=PARTS).config_json()
        config = check_config(apply_overrides(settled, arguments.overrides), where=run_path)
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
