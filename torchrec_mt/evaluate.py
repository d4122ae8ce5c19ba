"""torchrec-mt evaluate RUN: judges a run's best model on the test split by exact retrieval over the whole catalogue.

The judgement goes to RUN/evaluation/metrics.json, each anchor's values to anchors.parquet beside it, and a page to look
at to report.html; another one (--model, --set evaluate...) to files named after it.
"""

import argparse
import json
from collections.abc import Sequence

from torchrec_mt.config import add_set_argument, check_config, check_keys
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import run_program
from torchrec_mt.reporting.page import page_path
from torchrec_mt.reporting.table import evaluation_tables
from torchrec_mt.reporting.terminal import console
from torchrec_mt.retrieval.baselines.names import BASELINES, chosen
from torchrec_mt.runs import RunFolder
from torchrec_mt.storage import push_back
from torchrec_mt.workflows.evaluation import evaluate_here

_KEYS = ("evaluate.*", "runtime.*", "sharding.*", "dataset.path")
"""What `--set` can change here; all else the run has settled."""


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(prog="torchrec-mt evaluate", description=__doc__)
    parser.add_argument("run", help="a run folder that `torchrec-mt train` wrote, or its URL")
    parser.add_argument(
        "--model", choices=["best", "last"], default="best", help="which of the kept models (default best)"
    )
    parser.add_argument(
        "--baselines",
        metavar="NAMES",
        help=f"short for --set evaluate.baselines: names with commas between them, or 'all': {', '.join(BASELINES)}",
    )
    parser.add_argument(
        "--slices",
        metavar="COLUMNS",
        help="short for --set evaluate.slices: columns with commas between them, such as product.brand,price",
    )
    add_set_argument(parser, example="evaluate.split=valid", keys=_KEYS)
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    check_keys(arguments.overrides, _KEYS)
    run = RunFolder.open(arguments.run)
    overrides = list(arguments.overrides)
    if arguments.slices is not None:
        names = [name.strip() for name in arguments.slices.split(",") if name.strip()]
        overrides.append(f"evaluate.slices={json.dumps(names)}")
    if arguments.baselines is not None:
        overrides.append(f"evaluate.baselines={json.dumps(chosen(arguments.baselines))}")
    config = check_config(run.config_json(), overrides, where=str(run.path))
    path = run.evaluation_path.with_name(config.evaluate.file_name(arguments.model))
    with runtime(config.runtime) as here:
        evaluation = evaluate_here(run, config, here, path=path, which=arguments.model)
    if evaluation is None:
        return 0  # the main rank speaks
    push_back(run.where, run.path, parts=["evaluation"])
    if arguments.json:
        print(json.dumps(evaluation))
    else:
        console().print(evaluation_tables(evaluation))
        console().print(f"run: {run.where}   metrics: {path}   page: {page_path(path)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_program(main)
