"""torchrec-mt evaluate RUN: judges a run's best model on the test split by exact retrieval over the whole catalogue.

The judgement goes to RUN/evaluation/metrics.json; another one (--model, --set evaluate...) to a file named after it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from torchrec_mt.config import RunConfig, add_set_argument, apply_overrides, check_config, check_keys
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import run_program
from torchrec_mt.reporting.table import evaluation_table, judged_table
from torchrec_mt.reporting.terminal import console, progress_bar
from torchrec_mt.retrieval.baselines import Ranker
from torchrec_mt.retrieval.encode import model_rankers
from torchrec_mt.retrieval.evaluator import baseline_rankers, evaluate_tasks, judged_tasks
from torchrec_mt.runs import RunFolder, write_atomic
from torchrec_mt.training.job import load_run_model

_KEYS = ("evaluate.*", "runtime.*", "sharding.*", "dataset.path")
"""What `--set` can change here; all else the run has settled."""


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(prog="torchrec-mt evaluate", description=__doc__)
    parser.add_argument("run", help="a run folder that `torchrec-mt train` wrote")
    parser.add_argument(
        "--model", choices=["best", "last"], default="best", help="which of the kept models (default best)"
    )
    add_set_argument(parser, example="evaluate.split=valid", keys=_KEYS)
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    return parser


def evaluate_run(run: RunFolder, config: RunConfig, which: str, path: Path) -> dict[str, object] | None:
    """All tasks of the dataset, model and baselines, written to `path`. Called on every rank; told on the main one."""
    schema = config.dataset
    dataset = PreparedDataset.open(schema.path)
    dataset.check_declaration(schema)
    run.check_dataset(dataset.manifest.digest, schema.path)
    with runtime(config.runtime) as here, progress_bar(enabled=here.is_main) as bar:
        line = bar.add_task("evaluate", total=None, note="")

        def show(stage: str, done: int, total: int) -> None:
            bar.update(line, description=f"evaluate: {stage}", completed=done, total=total)

        show("load", 0, 1)
        model = load_run_model(
            run, dataset, schema, config.model, config.loss, config.sharding, runtime=here, which=which
        )
        tasks = judged_tasks(dataset, config.evaluate)
        models = model_rankers(model, Collator(dataset), dataset, tasks, config.evaluate, here.device, progress=show)

        def judge() -> dict[str, object]:
            rankers: dict[str, dict[str, Ranker]] = {
                name: {"model": models[name], **baseline_rankers(dataset, name, config.evaluate)} for name in tasks
            }
            evaluation = evaluate_tasks(dataset, rankers, config.evaluate, progress=show).to_json(which)
            write_atomic(path, json.dumps(evaluation, indent=1) + "\n")
            return evaluation

        evaluation = on_main(judge)
        return evaluation if here.is_main else None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    check_keys(arguments.overrides, _KEYS)
    run = RunFolder.open(arguments.run)
    config = check_config(apply_overrides(run.config_json(), arguments.overrides), where=str(run.path))
    path = run.evaluation_path.with_name(config.evaluate.file_name(arguments.model))
    evaluation = evaluate_run(run, config, arguments.model, path)
    if evaluation is None:
        return 0  # the main rank speaks
    if arguments.json:
        print(json.dumps(evaluation))
    else:
        for table in (evaluation_table(evaluation), judged_table(evaluation)):
            if table is not None:
                console().print(table)
        console().print(f"run: {run.path}   metrics: {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_program(main)
