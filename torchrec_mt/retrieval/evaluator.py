"""The evaluator: systems x tasks -> metrics over the whole catalogue, by slice too. Reads only a prepared dataset.

What a task asks is read once (`questions`), every system is ranked and judged by chunks of anchors (`measures`), then
means, intervals and comparisons are taken over the anchors (`results`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.errors import UserError, require, within
from torchrec_mt.retrieval.baselines.fusion import DEPTH as FUSED_DEPTH
from torchrec_mt.retrieval.baselines.names import BASELINES, DEFAULTS, Baseline
from torchrec_mt.retrieval.baselines.ranker import Ranker
from torchrec_mt.retrieval.measures import asked_depth, main_metrics, mean_metrics, measure
from torchrec_mt.retrieval.metrics import METRICS, Relevant, parse_metric
from torchrec_mt.retrieval.pools import judge_pool, pool_depth
from torchrec_mt.retrieval.questions import Questions, questions_of, relevant_of
from torchrec_mt.retrieval.records import Records
from torchrec_mt.retrieval.results import (
    FORMAT,
    TaskResult,
    Values,
    compared_values,
    comparisons_of,
    flips_for,
    task_result,
    tasks_json,
    without_nan,
)
from torchrec_mt.retrieval.slices import slice_columns


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to judge on.

    Args:
        split: test, or valid while tuning. max_anchors: at most so many anchors per task, a fixed sample; 0 takes all.
        baselines: what to compare with; "oracle" is the ceiling.
        metrics: what to judge by, such as "recall@10"; the first four are the main ones, which are compared.
        slices: columns of the entity data to cut slices by, "product.brand" or "brand".
        vectors: where each rank keeps its part of a catalogue's vectors while it ranks: in memory, or on disk in a file
            without a name beside the results, for catalogues that memory does not hold.
    """

    split: Literal["valid", "test"] = "test"
    max_anchors: int = 0
    baselines: tuple[Baseline, ...] = DEFAULTS
    metrics: tuple[str, ...] = METRICS
    slices: tuple[str, ...] = ()
    vectors: Literal["memory", "disk"] = "memory"

    def __post_init__(self) -> None:
        within(self, 0, 1_000_000_000, "max_anchors")
        require(self.metrics, "metrics", self.metrics, "at least one metric")
        require(len(set(self.metrics)) == len(self.metrics), "metrics", self.metrics, "a list without repeats")
        for name in self.metrics:
            try:
                parse_metric(name)
            except ValueError as error:
                raise ValueError(f"metrics: {error}") from None

    def file_name(self, model: str) -> str:
        """Where the judgement of a run's `model` ("best" or "last") goes.

        metrics.json is the default judgement and nothing else: test split, best model, all anchors, default baselines.
        Any other says in its name what it is: metrics-valid.json, metrics-test-last.json, ... What is measured of it,
        and how it is sliced, does not change a judgement's name.
        """
        differs = [model] if model != "best" else []
        if self.max_anchors:
            differs.append(f"{self.max_anchors}-anchors")
        if set(self.baselines) == set(BASELINES):
            differs.append("all-baselines")
        elif set(self.baselines) != set(DEFAULTS):
            differs += [name for name in BASELINES if name in self.baselines] or ["no-baselines"]
        if self.split != "test" or differs:
            differs.insert(0, self.split)
        return "-".join(["metrics", *differs]) + ".json"


@dataclass(frozen=True)
class Evaluation:
    """Results of all tasks, and what they were judged on."""

    tasks: dict[str, TaskResult]
    config: EvaluateConfig

    def to_json(self, model: str, digest: str = "") -> dict[str, Any]:
        """The stable form of `evaluation/metrics.json`, without NaN.

        Args:
            model: "best" or "last", which was judged. digest: of the dataset.
        """
        tasks: dict[str, Any] = without_nan(tasks_json(self.tasks))
        return {"format": FORMAT, **terms(self.config, model, digest), "tasks": tasks}


def terms(config: EvaluateConfig, model: str, digest: str) -> dict[str, Any]:
    """What a judgement is of, as JSON: at the top of metrics.json, and in the metadata of anchors.parquet."""
    return {
        "split": config.split,
        "model": model,
        "max_anchors": config.max_anchors,
        "baselines": list(config.baselines),
        "metrics": list(config.metrics),
        "main_metrics": list(main_metrics(config.metrics)),
        "slices": list(config.slices),
        "dataset": digest,
    }


def judged_tasks(dataset: PreparedDataset, config: EvaluateConfig) -> list[str]:
    """The tasks that have pairs in the split to judge on.

    Raises:
        UserError: none has.
    """
    tasks = [name for name, task in dataset.manifest.tasks.items() if task.pairs[config.split]]
    if not tasks:
        raise UserError(
            f"evaluate.split = '{config.split}': no task of '{dataset.path}' has pairs there: judge another split, or "
            "mend dataset.split and prepare again"
        )
    return tasks


def split_anchors(dataset: PreparedDataset, task: str, config: EvaluateConfig) -> np.ndarray:
    """The anchors that a task is judged on, ascending: all of the split, or a fixed sample of them."""
    anchors = np.unique(dataset.pairs(task, config.split)["anchor"])
    if 0 < config.max_anchors < len(anchors):
        anchors = np.sort(np.random.default_rng(0).choice(anchors, config.max_anchors, replace=False))
    return anchors


def task_questions(dataset: PreparedDataset, task: str, config: EvaluateConfig) -> Questions:
    """What a task asks in the split.

    Raises:
        UserError: a slice by a column that is not there.
    """
    columns = slice_columns(dataset, config.slices)
    return questions_of(dataset, task, split_anchors(dataset, task, config), dataset.pairs(task, config.split), columns)


def score(dataset: PreparedDataset, task: str, ranker: Ranker, config: EvaluateConfig) -> dict[str, float]:
    """Means of a ranker's metrics on one task and nothing else, for validation."""
    anchor_B, relevant = split_anchors(dataset, task, config), split_relevant(dataset, task, config)
    num_products = dataset.manifest.entities[dataset.manifest.tasks[task].candidate].count
    return mean_metrics(anchor_B, relevant, ranker, config.metrics, num_products=num_products)


def ranked_depth(dataset: PreparedDataset, task: str, config: EvaluateConfig) -> int:
    """How deep the model must rank for all that is asked of it."""
    anchors = len(split_anchors(dataset, task, config))
    depth = max(asked_depth(config.metrics), pool_depth(dataset, task, config.split, anchors))
    return depth * (FUSED_DEPTH if "fusion" in config.baselines else 1)


def split_relevant(dataset: PreparedDataset, task: str, config: EvaluateConfig) -> Relevant:
    """The right answers to the anchors of `split_anchors`."""
    return relevant_of(split_anchors(dataset, task, config), dataset.pairs(task, config.split))


def evaluate_task(
    dataset: PreparedDataset,
    task: str,
    rankers: Mapping[str, Ranker],
    config: EvaluateConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    records: Records | None = None,
) -> tuple[TaskResult, Values]:
    """Judges every ranker on one task: the result but for comparisons, and what is compared.

    Args:
        progress: told done and total of (systems x anchors). records: takes each system's values per anchor.
    """
    questions, measured = task_questions(dataset, task, config), {}
    total = len(rankers) * len(questions.anchor_B)
    for number, (system, ranker) in enumerate(rankers.items()):

        def told(done: int, all_of_it: int, number: int = number) -> None:
            if progress:
                progress(number * all_of_it + done, total)

        measured[system] = measure(questions, ranker, config.metrics, progress=told)
        if records:
            records.write(task, system, questions, measured[system])
    pool = judge_pool(dataset, task, config.split, split_anchors(dataset, task, config), rankers)
    result = replace(task_result(questions, measured, config.metrics), judged=pool)
    return result, compared_values(measured, config.metrics)


def evaluate_tasks(
    dataset: PreparedDataset,
    rankers: Mapping[str, Callable[[], Mapping[str, Ranker]]],
    config: EvaluateConfig,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    records: Records | None = None,
) -> Evaluation:
    """Judges every task's rankers, task by task: memory holds those of one.

    Args:
        rankers: makes those of a task when its turn comes; after it they are let go. A task without has no pairs in the
            split, and an empty result.
    """
    results, values = {}, {}
    for name in dataset.manifest.tasks:
        if name not in rankers:
            results[name] = TaskResult(0, {})
            continue

        def told(done: int, total: int, name: str = name) -> None:
            if progress:
                progress(name, done, total)

        results[name], values[name] = evaluate_task(
            dataset, name, rankers[name](), config, progress=told, records=records
        )
    rivals = sum(max(0, len(systems) - 1) for systems in values.values())
    flips = flips_for(rivals * len(main_metrics(config.metrics)))
    for name, systems in values.items():
        results[name] = replace(results[name], comparisons=comparisons_of(systems, flips))
    return Evaluation(results, config)
