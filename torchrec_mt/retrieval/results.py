"""Results of an evaluation: means with intervals, comparisons, slices; and their form as JSON, `metrics.json`."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from torchrec_mt.retrieval.measures import Measured, main_metrics
from torchrec_mt.retrieval.pools import PoolResult
from torchrec_mt.retrieval.questions import Questions
from torchrec_mt.retrieval.slices import lumped
from torchrec_mt.retrieval.uncertainty import Comparison, Interval, bootstrap, compare, holm

FORMAT = 2
"""Of metrics.json. Files without a format are of the first, which had means only."""
MODEL = "model"
FLIPS = 10_000
Scores = dict[str, dict[str, float]]
Intervals = dict[str, dict[str, tuple[float, float]]]
Comparisons = dict[str, dict[str, Comparison]]
Values = dict[str, dict[str, np.ndarray]]
"""value_B by system and main metric."""


@dataclass(frozen=True)
class Slice:
    """Some anchors, or all: how many, the mean of each metric by system, and its 95% bootstrap interval."""

    num_anchors: int
    systems: Scores
    intervals: Intervals = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult(Slice):
    """One task.

    Args:
        num_without_positives: anchors that nothing is relevant to; they are not among `num_anchors`.
        lists: means of the measures of lists by system, and coverage.
        comparisons: the model minus each other system, by main metric; p-values as they are.
        slices: by slicing and label, the main metrics.
        judged: measures on the judged pool; None where no pair was judged irrelevant.
    """

    num_without_positives: int = 0
    lists: Scores = field(default_factory=dict)
    comparisons: Comparisons = field(default_factory=dict)
    slices: dict[str, dict[str, Slice]] = field(default_factory=dict)
    judged: PoolResult | None = None


def task_result(questions: Questions, measured: Mapping[str, Measured], metrics: tuple[str, ...]) -> TaskResult:
    """Means and intervals of the systems of one task, without comparisons; everything is drawn from seed 0."""
    main = main_metrics(metrics)
    whole = _slice({system: one.values | one.lists for system, one in measured.items()}, len(questions.anchor_B))
    return TaskResult(
        num_anchors=whole.num_anchors,
        systems={system: {name: whole.systems[system][name] for name in metrics} for system in measured},
        intervals=whole.intervals,
        num_without_positives=questions.num_without_positives,
        lists={
            system: one.coverage | {name: whole.systems[system][name] for name in one.lists}
            for system, one in measured.items()
        },
        slices=dict(_slices(questions, measured, main)),
    )


def _slices(
    questions: Questions, measured: Mapping[str, Measured], main: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Slice]]]:
    for name, slicing in questions.slicings.anchor.items():
        small, found = lumped(slicing, slicing.code), {}
        for number, label in enumerate(small.labels):
            in_B = small.code == number
            values = {system: {key: one.values[key][in_B] for key in main} for system, one in measured.items()}
            found[label] = _slice(values, int(in_B.sum()))
        yield name, found
    first = next(iter(measured.values()), None)
    for name, labels in (first.parts if first else {}).items():
        yield (
            name,
            {
                label: _slice(
                    {s: one.parts[name][label].values for s, one in measured.items()}, int(part.asked_B.sum())
                )
                for label, part in labels.items()
            },
        )


def _slice(values: Mapping[str, Mapping[str, np.ndarray]], num_anchors: int) -> Slice:
    """All systems on the same draws of the anchors."""
    found = bootstrap({f"{s}/{name}": value_B for s, named in values.items() for name, value_B in named.items()})
    intervals: dict[str, dict[str, Interval]] = {
        s: {n: found[f"{s}/{n}"] for n in named} for s, named in values.items()
    }
    return Slice(
        num_anchors,
        {s: {name: one.mean for name, one in named.items()} for s, named in intervals.items()},
        {s: {name: (one.low, one.high) for name, one in named.items()} for s, named in intervals.items()},
    )


def compared_values(measured: Mapping[str, Measured], metrics: tuple[str, ...]) -> Values:
    """What `comparisons_of` needs of the systems of a task."""
    return {system: {name: one.values[name] for name in main_metrics(metrics)} for system, one in measured.items()}


def comparisons_of(values: Values, flips: int = FLIPS) -> Comparisons:
    """The model minus each other system, all on the same draws and flips, from seed 0.

    Args:
        flips: random sign flips behind each p-value.
    """
    rivals = [system for system in values if system != MODEL]
    if MODEL not in values or not rivals:
        return {}
    main = list(values[MODEL])
    names = [f"{rival}/{metric}" for rival in rivals for metric in main]
    found = compare(
        {name: values[MODEL][name.rpartition("/")[2]] for name in names},
        {name: values[name.rpartition("/")[0]][name.rpartition("/")[2]] for name in names},
        flips=flips,
    )
    return {rival: {metric: found[f"{rival}/{metric}"] for metric in main} for rival in rivals}


def flips_for(comparisons: int) -> int:
    """Random flips for so many comparisons: the least p-value is 1 / (1 + flips), and Holm multiplies it by them."""
    return max(FLIPS, 100 * comparisons)


def corrected(tasks: Mapping[str, TaskResult]) -> dict[tuple[str, str, str], float]:
    """P-values by task, rival and metric, corrected (Holm) for all comparisons of the evaluation."""
    found = {
        (task, rival, metric): one.p_value
        for task, result in tasks.items()
        for rival, metrics in result.comparisons.items()
        for metric, one in metrics.items()
    }
    return dict(zip(found, holm(list(found.values())), strict=True))


def comparison_json(found: Comparison, p_holm: float) -> dict[str, float]:
    """A comparison as JSON: what is first minus what is second."""
    return {
        "difference": found.difference.mean,
        "low": found.difference.low,
        "high": found.difference.high,
        "p_value": found.p_value,
        "p_holm": p_holm,
        "effect_size": found.effect_size,
    }


def tasks_json(tasks: Mapping[str, TaskResult]) -> dict[str, Any]:
    """The tasks as `metrics.json` has them."""
    p_holm = corrected(tasks)
    return {
        name: {
            "num_anchors": task.num_anchors,
            "num_without_positives": task.num_without_positives,
            "systems": task.systems,
            "intervals": task.intervals,
            "lists": task.lists,
            "comparisons": {
                rival: {metric: comparison_json(one, p_holm[name, rival, metric]) for metric, one in found.items()}
                for rival, found in task.comparisons.items()
            },
            "slices": {
                slicing: {
                    label: {"num_anchors": part.num_anchors, "systems": part.systems, "intervals": part.intervals}
                    for label, part in labels.items()
                }
                for slicing, labels in task.slices.items()
            },
        }
        | ({"judged": asdict(task.judged)} if task.judged else {})
        for name, task in tasks.items()
    }


def without_nan(value: Any) -> Any:
    """A tree for JSON: tuples as lists, and None for what is no finite number."""
    if isinstance(value, Mapping):
        return {key: without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
