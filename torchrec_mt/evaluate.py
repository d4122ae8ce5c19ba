"""torchrec-mt evaluate RUN: judges a run's best model on the test split by exact retrieval over the whole catalogue.

The judgement goes to RUN/evaluation/metrics.json, each anchor's values to anchors.parquet beside it, and a page to look
at to report.html; another one (--model, --set evaluate...) to files named after it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from torchrec_mt.config import RunConfig, add_set_argument, apply_overrides, check_config, check_keys, open_dataset
from torchrec_mt.data.collate import Collator
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import run_program
from torchrec_mt.reporting.page import evaluation_page, page_path, samples_path
from torchrec_mt.reporting.table import evaluation_tables
from torchrec_mt.reporting.terminal import console, progress_bar
from torchrec_mt.retrieval.baselines.names import BASELINES, chosen
from torchrec_mt.retrieval.baselines.ranker import Ranker
from torchrec_mt.retrieval.baselines.rankers import baseline_rankers
from torchrec_mt.retrieval.encode import vectors_of
from torchrec_mt.retrieval.evaluator import evaluate_tasks, judged_tasks, ranked_depth, terms
from torchrec_mt.retrieval.rank import model_rankers
from torchrec_mt.retrieval.records import records_path, writing_records
from torchrec_mt.retrieval.samples import choose, encode_chosen, samples_json
from torchrec_mt.retrieval.slices import slice_columns
from torchrec_mt.runs import RunFolder, write_atomic
from torchrec_mt.storage import push_back
from torchrec_mt.training.trained import load_run_model

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


def evaluate_run(run: RunFolder, config: RunConfig, which: str, path: Path) -> dict[str, object] | None:
    """All tasks of the dataset, model and baselines, written to `path`. Called on every rank; told on the main one."""
    dataset, schema = open_dataset(config)
    run.check_dataset(dataset.manifest.digest, schema.path)
    columns = slice_columns(dataset, config.evaluate.slices)
    with runtime(config.runtime) as here, progress_bar(enabled=here.is_main) as bar:
        line = bar.add_task("evaluate", total=None, note="")

        def show(stage: str, done: int, total: int) -> None:
            bar.update(line, description=f"evaluate: {stage}", completed=done, total=total)

        show("load", 0, 1)
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
        tasks = judged_tasks(dataset, config.evaluate)
        collator = Collator(dataset)
        models = model_rankers(
            model,
            collator,
            dataset,
            tasks,
            config.evaluate,
            here.device,
            depths={name: ranked_depth(dataset, name, config.evaluate) for name in tasks},
            folder=path.parent if config.evaluate.vectors == "disk" else None,
            progress=show,
        )
        sampled = on_main(lambda: choose(dataset, models, config.evaluate))
        encoded = encode_chosen(dataset, sampled, vectors_of(model, collator, here.device))

        def judge() -> dict[str, object]:
            rankers: dict[str, dict[str, Ranker]] = {
                name: {"model": models[name], **baseline_rankers(dataset, name, config.evaluate, model=models[name])}
                for name in tasks
            }
            about = terms(config.evaluate, which, dataset.manifest.digest)
            with writing_records(records_path(path), dataset, about, config.evaluate.metrics, columns) as records:
                evaluation = evaluate_tasks(dataset, rankers, config.evaluate, progress=show, records=records)
            found = evaluation.to_json(which, dataset.manifest.digest)
            write_atomic(path, json.dumps(found, indent=1, allow_nan=False) + "\n")
            samples = samples_json(dataset, sampled, *encoded, run=run.path.resolve().name)
            write_atomic(samples_path(path), json.dumps(samples, allow_nan=False) + "\n")
            write_atomic(page_path(path), evaluation_page(found, samples))
            return found

        evaluation = on_main(judge)
        return evaluation if here.is_main else None


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
    config = check_config(apply_overrides(run.config_json(), overrides), where=str(run.path))
    path = run.evaluation_path.with_name(config.evaluate.file_name(arguments.model))
    evaluation = evaluate_run(run, config, arguments.model, path)
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
