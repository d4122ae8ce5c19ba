"""torchrec-mt indexes RUN: approximate indexes (FAISS) against exact retrieval, on the vectors of a run's best model.

The numbers go to RUN/evaluation/indexes.json, where those of tasks that were not measured stay; a sentence recommends
the fastest setting that finds the wished share.
"""

import argparse
import json
import os
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchrec_mt.config import RunConfig, add_set_argument, check_config, check_keys, open_dataset
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.opening import reading
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.runtime import runtime
from torchrec_mt.errors import UserError, run_program
from torchrec_mt.reporting.indexes import FORMAT, entity_report, index_sentences, index_tables, merged_report
from torchrec_mt.reporting.terminal import console, progress_bar
from torchrec_mt.retrieval.encode import Side, anchors_of, candidates_of, encode, space_name
from torchrec_mt.retrieval.evaluator import EvaluateConfig, judged_tasks, split_anchors, split_relevant
from torchrec_mt.retrieval.index_grid import structures
from torchrec_mt.retrieval.indexes import Questions, measure
from torchrec_mt.runs import RunFolder, write_atomic
from torchrec_mt.storage import push_back
from torchrec_mt.training.trained import load_run_model

_KEYS = ("evaluate.split", "evaluate.max_anchors", "runtime.*", "sharding.*", "dataset.path")
"""What `--set` can change here; all else the run has settled."""


def build_parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    parser = argparse.ArgumentParser(
        prog="torchrec-mt indexes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run folder that `torchrec-mt train` wrote, or its URL")
    parser.add_argument("--task", action="append", help="measure this task only; may be repeated (default all)")
    parser.add_argument(
        "--wish", type=float, default=0.95, help="share of the exact best 100 that the index should find (0.95)"
    )
    add_set_argument(parser, example="evaluate.max_anchors=1000", keys=_KEYS)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser


def chosen_tasks(wanted: Sequence[str] | None, judged: Sequence[str], split: str) -> list[str]:
    """The wanted tasks, in the dataset's order.

    Raises:
        UserError: one of them has no pairs in the split, or does not exist.
    """
    for name in wanted or ():
        if name not in judged:
            raise UserError(f"--task {name}: no task with pairs in the {split} split; one of {', '.join(judged)}")
    return [name for name in judged if not wanted or name in wanted]


def _path(run: RunFolder) -> Path:
    return run.evaluation_path.with_name("indexes.json")


def _earlier(path: Path) -> dict[str, Any]:
    """What was measured before; nothing of files in another form.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return {"entities": {}}
    with reading(path, "remove it, and measure all tasks again"):
        report = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(report, dict):
            raise ValueError("it holds no object")
    return report if report.get("format") == FORMAT else {"entities": {}}


def _terms(config: EvaluateConfig, wish: float) -> dict[str, Any]:
    """What is asked for, and on which machine; on a rank of the job."""
    return {
        "split": config.split,
        "max_anchors": config.max_anchors,
        "wish": wish,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "faiss": metadata.version("faiss-cpu"),
    }


def measure_run(run: RunFolder, config: RunConfig, wanted: Sequence[str] | None, wish: float) -> dict[str, Any] | None:
    """Every candidate entity of the tasks, written to the run. Called on every rank.

    Returns:
        What was measured now, on the main rank.
    """
    dataset, schema = open_dataset(config)
    run.check_dataset(dataset.manifest.digest, schema.path)
    info = dataset.manifest.tasks
    tasks = chosen_tasks(wanted, judged_tasks(dataset, config.evaluate), config.evaluate.split)
    with runtime(config.runtime) as here, progress_bar(enabled=here.is_main) as bar:
        line = bar.add_task("indexes", total=None, note="")
        earlier, terms = on_main(lambda: _earlier(_path(run))), _terms(config.evaluate, wish)

        def show(what: str, done: int, total: int) -> None:
            bar.update(line, description=f"indexes: {what}", completed=done, total=total)

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
        collator = Collator(dataset)

        def vectors(entity: str, id_N: np.ndarray, side: Side) -> torch.Tensor:
            return encode(model, collator, entity, id_N, side=side, device=here.device).cpu()

        def asked(name: str) -> Questions:
            task, id_N = info[name], split_anchors(dataset, name, config.evaluate)
            return Questions(
                anchor_BD=vectors(task.anchor, id_N, anchors_of(task.trained_as or name)).numpy(),
                self_B=id_N if task.anchor == task.candidate else None,
                relevant=split_relevant(dataset, name, config.evaluate),
            )

        def measured(candidate_ND: torch.Tensor, questions: dict[str, Questions]) -> dict[str, Any]:
            wanted, left_out = structures(*candidate_ND.shape)
            exact, found = measure(candidate_ND, questions, wanted, threads=torch.get_num_threads(), progress=show)
            anchors = {name: len(one.anchor_BD) for name, one in questions.items()}
            return entity_report(exact, found, left_out, terms, candidates=len(candidate_ND), anchors=anchors)

        entities, sides = {}, {name: candidates_of(model, task.trained_as or name) for name, task in info.items()}
        spaces = {name: space_name(task.candidate, sides[name]) for name, task in info.items()}
        for space in dict.fromkeys(spaces[name] for name in tasks):
            mine = [name for name in tasks if spaces[name] == space]
            entity, side = info[mine[0]].candidate, sides[mine[0]]
            candidate_ND = vectors(entity, np.arange(dataset.manifest.entities[entity].count), side)
            entities[space] = on_main(partial(measured, candidate_ND, {name: asked(name) for name in mine}))
        report = {"format": FORMAT, "entities": entities}
        merged = merged_report(earlier, report, spaces)
        on_main(lambda: write_atomic(_path(run), json.dumps(merged, indent=1) + "\n"))
        return report if here.is_main else None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    if not 0 < arguments.wish <= 1:
        raise UserError(f"--wish {arguments.wish:g}: must be a share above 0 and at most 1, such as 0.95")
    check_keys(arguments.overrides, _KEYS)
    run = RunFolder.open(arguments.run)
    config = check_config(run.config_json(), arguments.overrides, where=str(run.path))
    report = measure_run(run, config, arguments.task, arguments.wish)
    if report is None:
        return 0  # the main rank speaks
    push_back(run.where, run.path, parts=["evaluation"])
    if arguments.json:
        print(json.dumps(report))
        return 0
    for table in index_tables(report):
        console().print(table)
    for sentence in index_sentences(report):
        console().print(sentence, soft_wrap=True, highlight=False)
    console().print(f"indexes: {_path(run)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_program(main)
