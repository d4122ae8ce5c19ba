"""Twins of a run: trained where they are not there yet, judged as the run is, and compared with it.

What a twin is: `twin_plan`. What is equal between a run and its twins, and what is not: docs/evaluation.md.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchrec_mt.config import RunConfig
from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.retrieval.comparison import FORMAT, Judgement, alike, compare_tasks
from torchrec_mt.retrieval.records import records_path
from torchrec_mt.runs import TWINS_COMPARISON, RunFolder, write_atomic
from torchrec_mt.storage import push_back
from torchrec_mt.training.keeper import BEST
from torchrec_mt.training.trained import lanes_of
from torchrec_mt.workflows.evaluation import evaluate_here
from torchrec_mt.workflows.training import BESIDE, EXECUTION, PLACEMENT, kept_run, train_here
from torchrec_mt.workflows.twin_plan import Twin, planned_twins, training_of

SETTABLE = (
    *(f"evaluate.{key}" for key in ("split", "max_anchors", "metrics", "vectors")),
    *EXECUTION,
    *PLACEMENT,
)
"""What may differ between a run and its twins: it makes no other model, but for the order of sums."""

Judge = Callable[[RunFolder, RunConfig, Runtime], Path]


def _judge(run: RunFolder, config: RunConfig, here: Runtime) -> Path:
    """Judges a run's best model; returns where the anchors' values are. Called on every rank."""
    path = run.evaluation_path.with_name(config.evaluate.file_name(BEST))
    evaluate_here(run, config, here, path=path)
    on_main(lambda: push_back(run.where, run.path, parts=["evaluation"]))
    return records_path(path)


def compare_with_twins(
    run: RunFolder,
    config: RunConfig,
    here: Runtime,
    tasks: Sequence[str],
    *,
    show: bool = True,
    tell: Callable[[str], None] = lambda line: None,
    asked: Callable[[], bool] = lambda: False,
    judge: Judge = _judge,
) -> dict[str, Any]:
    """Trains the twins that are not there yet, judges run and twins alike, and compares them. Called on every rank.

    Args:
        config: of the run. show: the progress of trainings and judgements. tell: takes lines about what is done.
        asked: whether this rank was asked to end. judge: judges a run, on all ranks; returns its `anchors.parquet`.

    Returns:
        What `RUN/twins/comparison.json` says; or, where a training was asked to end, its outcome and `twin`, its task.

    Raises:
        UserError: the run has not come to its end, or began with another's weights; a task that cannot be trained
            alone; whatever training and evaluation refuse.
    """
    twins = planned_twins(run, config, tasks)
    for twin in twins:
        outcome = _train(twin, str(run.dataset_digest), here, show=show, tell=tell, asked=asked)
        if outcome["interrupted"]:
            return {"twin": twin.task, **outcome}
    tell("judging the run and its twins")
    unified = judge(run, replace(config, evaluate=twins[0].config.evaluate), here)
    others = [judge(RunFolder.open(twin.place), twin.config, here) for twin in twins]
    return on_main(lambda: _compare(run, unified, twins, others))


def _train(
    twin: Twin,
    digest: str,
    here: Runtime,
    *,
    show: bool,
    tell: Callable[[str], None],
    asked: Callable[[], bool],
) -> dict[str, object]:
    """Trains a twin to its end, from where it stands; the outcome. Called on every rank.

    Args:
        digest: of the dataset.
    """
    kept = on_main(lambda: kept_run(twin.place, twin.config, but=(*EXECUTION, *PLACEMENT, *BESIDE)))
    if kept and (kept.dataset_digest != digest or lanes_of(kept, twin.config.checkpoint) != twin.lanes):
        kept = None
    steps, pairs = twin.config.trainer.steps, twin.config.reader.batch_size * twin.lanes
    tell(f"twin of {twin.task}: up to {steps:,} steps of {twin.config.trainer.accumulate * pairs:,} pairs")
    outcome = train_here(
        twin.config,
        twin.place,
        here,
        resume=kept is not None,
        overwrite=kept is None,
        lanes=twin.lanes,
        show=show,
        asked=asked,
    )
    if "nothing_left" in outcome:
        tell(f"twin of {twin.task}: trained before, kept")
    return outcome


def _compare(run: RunFolder, unified: Path, twins: Sequence[Twin], others: Sequence[Path]) -> dict[str, Any]:
    first = Judgement.open(run.where, unified)
    judged: dict[str, tuple[Judgement, Judgement]] = {}
    told = {}
    for twin, file in zip(twins, others, strict=True):
        second = Judgement.open(twin.place, file)
        judged |= dict.fromkeys(second.tasks, (first, second))
        both = {"unified": training_of(run), "twin": training_of(RunFolder.open(twin.place))}
        told[twin.task] = {
            "run": twin.place,
            "tasks": list(second.tasks),
            "pairs_per_step": twin.config.reader.batch_size * twin.lanes * twin.config.trainer.accumulate,
            **{key: {name: one[key] for name, one in both.items()} for key in ("steps", "best_step")},
        }
    metrics = first.about["main_metrics"]
    report = {
        "format": FORMAT,
        "run": run.where,
        **alike(first),
        "num_comparisons": len(judged) * len(metrics),
        "twins": told,
        "tasks": compare_tasks(judged, metrics, ("unified", "twin")),
    }
    write_atomic(run.path / TWINS_COMPARISON, json.dumps(report, indent=1, allow_nan=False) + "\n")
    push_back(run.where, run.path, parts=[TWINS_COMPARISON])
    return report
