"""torchrec-mt export RUN: the vectors of a run's best model, for a vector database or an index of your own.

They go to RUN/export as Parquet files of `id` and `vector`: every candidate, and for each task every entity that may be
an anchor. Vectors have length 1; a pair's score is their inner product.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchrec_mt.config import RunConfig, add_set_argument, check_config, check_keys, open_dataset
from torchrec_mt.data.collate import Collator
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import UserError, run_program
from torchrec_mt.reporting.dataset import exported_table
from torchrec_mt.reporting.terminal import console, progress_bar
from torchrec_mt.retrieval.encode import anchors_of, candidates_of, encode, space_name
from torchrec_mt.retrieval.exported import MARK, Space, check_place, write_export
from torchrec_mt.runs import RunFolder
from torchrec_mt.schema import Task
from torchrec_mt.storage import Output
from torchrec_mt.training.keeper import BEST, LAST
from torchrec_mt.training.trained import load_run_model

_KEYS = ("runtime.*", "sharding.*", "dataset.path")
"""What `--set` can change here; all else the run has settled."""


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(
        prog="torchrec-mt export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run folder that `torchrec-mt train` wrote, or its URL")
    parser.add_argument("--output", help="the folder to write, or a URL; default RUN/export")
    parser.add_argument("--task", action="append", help="export this task only; may be repeated (default all)")
    parser.add_argument("--model", choices=[BEST, LAST], default=BEST, help="which of the kept models (default best)")
    add_set_argument(parser, example="runtime.device=cpu", keys=_KEYS)
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    return parser


def export_run(
    run: RunFolder, config: RunConfig, output: Output, *, tasks: Sequence[str] | None, which: str
) -> dict[str, Any] | None:
    """Encodes and writes everything that the tasks rank by. Called on every rank.

    Returns:
        What `export.json` says, on the main rank.

    Raises:
        UserError: on every rank; a task that the run does not train, a place that holds something else.
    """
    dataset, schema = open_dataset(config)
    run.check_dataset(dataset.manifest.digest, schema.path)
    trained = schema.trained_tasks
    for name in tasks or ():
        if name not in trained:
            raise UserError(f"--task {name}: no trained task of '{run.path}', one of {', '.join(trained)}")
    wanted = [name for name in trained if not tasks or name in tasks]
    with runtime(config.runtime) as here, progress_bar(enabled=here.is_main) as bar:
        folder = on_main(output.folder)
        on_main(lambda: check_place(folder))
        line = bar.add_task("export", total=None, note="")
        model = load_run_model(
            run,
            dataset,
            schema,
            config.model,
            config.loss,
            config.sharding,
            config.checkpoint,
            runtime=here,
            which=which,
        )
        collator = Collator(dataset)

        def show(what: str, done: int, total: int) -> None:
            bar.update(line, description=f"export: {what}", completed=done, total=total)

        spaces = _spaces(model, collator, {name: trained[name] for name in wanted}, here.device)
        about = write_export(folder, dataset, spaces, run=run.path.resolve().name, progress=show)
        on_main(output.push)
        return about if here.is_main else None


def _spaces(
    model: nn.Module, collator: Collator, tasks: Mapping[str, Task], device: torch.device
) -> dict[Space, Callable[[np.ndarray], Tensor]]:
    """What the tasks rank by: candidates, once for all tasks that share them, and each task's anchors."""
    sides = {name: (task.candidate, candidates_of(model, name)) for name, task in tasks.items()}
    spaces: dict[Space, Callable[[np.ndarray], Tensor]] = {}
    for entity, side in dict.fromkeys(sides.values()):
        mine = tuple(name for name in tasks if sides[name] == (entity, side))
        space = Space(entity=entity, tasks=mine, anchors=False, folder=f"candidates/{space_name(entity, side)}")
        spaces[space] = partial(encode, model, collator, entity, side=side, device=device)
    for name, task in tasks.items():
        space = Space(entity=task.anchor, tasks=(name,), anchors=True, folder=f"anchors/{name}")
        spaces[space] = partial(encode, model, collator, task.anchor, side=anchors_of(name), device=device)
    return spaces


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    check_keys(arguments.overrides, _KEYS)
    run = RunFolder.open(arguments.run)
    config = check_config(run.config_json(), arguments.overrides, where=str(run.path))
    output = Output(arguments.output or f"{run.where}/export", mark=MARK)
    about = export_run(run, config, output, tasks=arguments.task, which=arguments.model)
    if about is None:
        return 0  # the main rank speaks
    if arguments.json:
        print(json.dumps(about))
    else:
        console().print(exported_table(about))
        console().print(f"export: {output.where}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_program(main)
