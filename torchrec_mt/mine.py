"""torchrec-mt mine RUN: hard negatives for the next training, from a run's best model by exact retrieval.

They go to RUN/mined; a config takes them by a source of negatives { kind = "mined", path = "RUN/mined" }.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from torchrec_mt.config import RunConfig, add_set_argument, check_config, check_keys, open_dataset
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.mined import MARK as MINED
from torchrec_mt.data.mined import check_place, write_mined
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import UserError, run_program
from torchrec_mt.reporting.dataset import mined_table
from torchrec_mt.reporting.terminal import console, progress_bar
from torchrec_mt.retrieval.encode import CANDIDATES, Side, anchors_of, candidates_of, encode
from torchrec_mt.retrieval.mining import mine_task, of_all_ranks
from torchrec_mt.runs import RunFolder
from torchrec_mt.storage import Output
from torchrec_mt.training.trained import load_run_model

_KEYS = ("runtime.*", "sharding.*", "dataset.path")
"""What `--set` can change here; all else the run has settled."""


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(
        prog="torchrec-mt mine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run folder that `torchrec-mt train` wrote, or its URL")
    parser.add_argument("--output", help="the folder to write, or a URL; default RUN/mined")
    parser.add_argument(
        "--depth",
        type=int,
        default=100,
        help="how many of the best candidates to look at, beyond the catalogue all of it (100)",
    )
    parser.add_argument("--per-anchor", type=int, default=16, help="negatives kept per anchor, the best-ranked (16)")
    parser.add_argument(
        "--margin", type=float, default=0.1, help="least distance in cosine below the anchor's known candidates (0.1)"
    )
    add_set_argument(parser, example="runtime.device=cpu", keys=_KEYS)
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    return parser


def mine_run(
    run: RunFolder, config: RunConfig, output: Output, depth: int, per_anchor: int, margin: float
) -> dict[str, Any] | None:
    """Mines every trained task, each rank for its part of the anchors. Called on every rank.

    Returns:
        What `mined.json` says, on the main rank.
    """
    dataset, schema = open_dataset(config)
    run.check_dataset(dataset.manifest.digest, schema.path)
    with runtime(config.runtime) as here, progress_bar(enabled=here.is_main) as bar:
        folder = on_main(lambda: _free_place(output))
        line = bar.add_task("mine", total=None, note="")
        model = load_run_model(
            run,
            dataset,
            schema,
            config.model,
            config.loss,
            config.sharding,
            config.checkpoint,
            runtime=here,
        )
        collator, mined = Collator(dataset), {}
        catalogues: dict[tuple[str, Side], Tensor] = {}
        for name, task in schema.trained_tasks.items():
            space = task.candidate, candidates_of(model, name)
            if space not in catalogues:
                every = np.arange(dataset.manifest.entities[task.candidate].count)
                kept = catalogues if space[1] == CANDIDATES else {}
                catalogues = kept | {space: encode(model, collator, space[0], every, side=space[1], device=here.device)}
            id_N = np.flatnonzero(dataset.anchor_frequencies(name))
            anchor_ND = encode(model, collator, task.anchor, id_N, side=anchors_of(name), device=here.device)
            own = slice(*(len(id_N) * part // here.world_size for part in (here.rank, here.rank + 1)))
            found = mine_task(
                anchor_ND[own],
                catalogues[space],
                id_N[own],
                dataset.known_candidates(name),
                anchors=dataset.manifest.entities[task.anchor].count,
                same_entity=task.anchor == task.candidate,
                depth=depth,
                per_anchor=per_anchor,
                margin=margin,
                progress=lambda done, total, name=name: bar.update(  # type: ignore[misc]
                    line, description=f"mine: {name}", completed=done, total=total
                ),
            )
            mined[name] = of_all_ranks(found, here.device)
        settings = {"depth": depth, "per_anchor": per_anchor, "margin": margin}

        def write() -> dict[str, Any]:
            about = write_mined(folder, dataset, mined, settings)
            output.push()
            return about

        about = on_main(write)
        return about if here.is_main else None


def _free_place(output: Output) -> Path:
    folder = output.folder()
    check_place(folder)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    if not 1 <= arguments.per_anchor <= arguments.depth <= 100_000 or not -2 <= arguments.margin <= 2:
        raise UserError("mine: needs 100000 >= --depth >= --per-anchor >= 1 and a --margin from -2 to 2")
    check_keys(arguments.overrides, _KEYS)
    run = RunFolder.open(arguments.run)
    config = check_config(run.config_json(), arguments.overrides, where=str(run.path))
    output = Output(arguments.output or f"{run.where}/mined", mark=MINED)
    about = mine_run(run, config, output, arguments.depth, arguments.per_anchor, arguments.margin)
    if about is None:
        return 0  # the main rank speaks
    if arguments.json:
        print(json.dumps(about))
    else:
        console().print(mined_table(about))
        console().print(f"mined: {output.where}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_program(main)
