"""The evaluator: systems x tasks -> metrics over the whole catalogue, by slice too. Reads only a prepared dataset."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import numpy as np

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.errors import UserError, within
from torchrec_mt.retrieval.baselines import Ranker, co_occurrence, oracle, popularity
from torchrec_mt.retrieval.bm25 import bm25
from torchrec_mt.retrieval.metrics import DEPTH, METRICS, Relevant, ranking_metrics
from torchrec_mt.retrieval.pools import PoolResult, judge_pool

Baseline = Literal["popularity", "bm25", "co_occurrence", "oracle"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to judge on.

    Args:
        split: test, or valid while tuning. max_anchors: at most so many anchors per task, a fixed sample; 0 takes all.
        baselines: what to compare with; "oracle" is the ceiling.
    """

    split: Literal["valid", "test"] = "test"
    max_anchors: int = 0
    baselines: tuple[Baseline, ...] = BASELINES

    def __post_init__(self) -> None:
        within(self, 0, 1_000_000_000, "max_anchors")

    def file_name(self, model: str) -> str:
        """Where the judgement of a run's `model` ("best" or "last") goes.

        metrics.json is the default judgement and nothing else: test split, best model, all anchors, all baselines.
        Any other says in its name what it is: metrics-valid.json, metrics-test-last.json, ...
        """
        differs = [model] if model != "best" else []
        if self.max_anchors:
            differs.append(f"{self.max_anchors}-anchors")
        if set(self.baselines) != set(BASELINES):
            differs += [name for name in BASELINES if name in self.baselines] or ["no-baselines"]
        if self.split != "test" or differs:
            differs.insert(0, self.split)
        return "-".join(["metrics", *differs]) + ".json"


@dataclass(frozen=True)
class Slice:
    """Metrics of each system on one slice of a task's pairs."""

    num_anchors: int
    systems: Scores


@dataclass(frozen=True)
class TaskResult(Slice):
    """Metrics of each system on one task, and by slice: "cold" candidates (never seen in training) and "warm" ones.

    Args:
        judged: measures on the judged pool; None where no pair was judged irrelevant.
    """

    slices: dict[str, Slice]
    judged: PoolResult | None = None


@dataclass(frozen=True)
class Evaluation:
    """Results of all tasks, and what they were judged on."""

    tasks: dict[str, TaskResult]
    config: EvaluateConfig

    def to_json(self, model: str) -> dict[str, object]:
        """The stable form of `evaluation/metrics.json`; `model` ("best" or "last") is the one that was judged."""
        return {
            "split": self.config.split,
            "model": model,
            "max_anchors": self.config.max_anchors,
            "baselines": list(self.config.baselines),
            "tasks": {
                name: {
                    "num_anchors": task.num_anchors,
                    "systems": task.systems,
                    "slices": {
                        key: {"num_anchors": part.num_anchors, "systems": part.systems}
                        for key, part in task.slices.items()
                    },
                }
                | ({"judged": asdict(task.judged)} if task.judged else {})
                for name, task in self.tasks.items()
            },
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


def baseline_rankers(dataset: PreparedDataset, task: str, config: EvaluateConfig) -> dict[str, Ranker]:
    """The baselines that the config asks for and the task allows."""
    rankers: dict[str, Ranker] = {}
    for name in config.baselines:
        match name:
            case "popularity":
                ranker: Ranker | None = popularity(dataset, task)
            case "co_occurrence":
                ranker = co_occurrence(dataset, task)
            case "bm25":
                ranker = bm25(dataset, task)
            case "oracle":
                ranker = oracle(dataset, task, config.split)
        if ranker is not None:
            rankers[name] = ranker
    return rankers


def _relevant(anchor_B: np.ndarray, pairs: Mapping[str, np.ndarray], keep: np.ndarray) -> Relevant:
    """Kept pairs of the given anchors (ascending); a pair of grade 0 is judged irrelevant."""
    position = np.searchsorted(anchor_B, pairs["anchor"])
    known = keep & (pairs["grade"] > 0) & (anchor_B[np.minimum(position, len(anchor_B) - 1)] == pairs["anchor"])
    owner, items, gains = position[known], pairs["candidate"][known], pairs["grade"][known]
    order = np.lexsort((items, owner))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(anchor_B)))])
    return Relevant(offsets, items[order], gains[order].astype(np.float64))


def evaluate_task(
    dataset: PreparedDataset,
    task: str,
    rankers: Mapping[str, Ranker],
    config: EvaluateConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    chunk: int = 2048,
) -> TaskResult:
    """Judges every ranker on one task.

    Args:
        progress: told done and total of (systems x anchors). chunk: anchors ranked at a time.
    """
    anchor_B, pairs = split_anchors(dataset, task, config), dataset.pairs(task, config.split)
    cold = dataset.train_counts(dataset.manifest.tasks[task].candidate)[pairs["candidate"]] == 0
    slices = {"all": np.ones(len(cold), bool), "cold": cold, "warm": ~cold}
    relevant = {name: _relevant(anchor_B, pairs, keep) for name, keep in slices.items()}
    scores: dict[str, Scores] = {name: {} for name in slices}
    for number, (system, ranker) in enumerate(rankers.items()):
        parts = []
        for start in range(0, len(anchor_B), chunk):
            parts.append(ranker(anchor_B[start : start + chunk], DEPTH))
            if progress:
                progress(number * len(anchor_B) + min(start + chunk, len(anchor_B)), len(rankers) * len(anchor_B))
        ranked_BK = np.concatenate(parts) if parts else np.zeros((0, DEPTH), np.int64)
        for name in slices:
            scores[name][system] = _means(ranked_BK, relevant[name])
    counts = {name: int((np.diff(relevant[name].offsets) > 0).sum()) for name in slices}
    return TaskResult(
        num_anchors=counts["all"],
        systems=scores["all"],
        slices={name: Slice(counts[name], scores[name]) for name in ("cold", "warm")},
    )


def _means(ranked_BK: np.ndarray, relevant: Relevant) -> dict[str, float]:
    """Means over the anchors that have something relevant; 0 where none has."""
    judged = np.diff(relevant.offsets) > 0
    values = ranking_metrics(ranked_BK, relevant, METRICS)
    return {name: float(values[name][judged].mean()) if judged.any() else 0.0 for name in METRICS}


def evaluate_tasks(
    dataset: PreparedDataset,
    rankers: Mapping[str, Mapping[str, Ranker]],
    config: EvaluateConfig,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Judges every task's rankers; a task without rankers has no pairs in the split, and an empty result."""
    results = {}
    for name in dataset.manifest.tasks:
        if name not in rankers:
            results[name] = TaskResult(0, {}, {})
            continue

        def told(done: int, total: int, name: str = name) -> None:
            if progress:
                progress(name, done, total)

        result = evaluate_task(dataset, name, rankers[name], config, progress=told)
        anchor_B = split_anchors(dataset, name, config)
        results[name] = replace(result, judged=judge_pool(dataset, name, config.split, anchor_B, rankers[name]))
    return Evaluation(results, config)
