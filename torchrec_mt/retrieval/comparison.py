"""Two judgements, anchor by anchor: reads the `anchors.parquet` of both and compares their models, task by task.

Only what was asked alike is compared: the same dataset, split and anchors.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.data.opening import reading
from torchrec_mt.errors import UserError
from torchrec_mt.retrieval.measures import LISTS
from torchrec_mt.retrieval.records import ABOUT
from torchrec_mt.retrieval.results import MODEL, comparison_json, flips_for, without_nan
from torchrec_mt.retrieval.uncertainty import Comparison, compare, holm

FORMAT = 1
_ALIKE = {"dataset": "dataset digest", "split": "split", "max_anchors": "max_anchors"}
_TERMS = (*_ALIKE, "metrics", "main_metrics")


@dataclass(frozen=True)
class Judgement:
    """A judgement, as its `anchors.parquet` has it.

    Args:
        place: the run or the file, as the user wrote it. about: what the judgement is of. tasks: that the model was
            judged on.
    """

    place: str
    file: Path
    about: Mapping[str, Any]
    tasks: tuple[str, ...]

    @classmethod
    def open(cls, place: str, file: Path) -> "Judgement":
        """Opens the file of a run (`place`), or one that was named itself.

        Raises:
            UserError: it is missing or damaged: the run is to be evaluated (again), or another of its files named.
        """
        if not file.is_file():
            raise UserError(f"run '{place}' has no {file.parent.name}/{file.name}{_instead(place, file)}")
        with reading(file, _remedy(place)):
            about = json.loads((pq.read_schema(file).metadata or {})[ABOUT])
            if not isinstance(about, dict) or not about.keys() >= set(_TERMS):
                raise ValueError(f"its metadata does not tell {', '.join(_TERMS)}")
            tasks = pq.read_table(file, columns=["task"], filters=[("system", "=", MODEL)])["task"].unique()
        return cls(place, file, about, tuple(tasks.to_pylist()))

    @property
    def measures(self) -> tuple[str, ...]:
        """What every anchor has a value of."""
        return (*self.about["metrics"], *LISTS)

    def read(self, task: str, measures: Sequence[str]) -> pa.Table:
        """Anchor, number of right answers and measures of the model on a task, by anchor."""
        with reading(self.file, _remedy(self.place)):
            table = pq.read_table(
                self.file,
                columns=["anchor", "relevant", *measures],
                filters=[("system", "=", MODEL), ("task", "=", task)],
            )
        return table.sort_by("anchor")


def _instead(place: str, file: Path) -> str:
    """What to do where the default judgement is missing: a config may ask for another, which has a file of its own."""
    others = sorted(other.name for other in file.parent.glob("anchors*.parquet"))
    if not others:
        return f": {_remedy(place)} first"
    return f", but {', '.join(others)}: give a file in place of the run, such as '{file.with_name(others[0])}'"


def _remedy(place: str) -> str:
    return "evaluate its run again" if Path(place).is_file() else f"run `torchrec-mt evaluate {place}`"


def compare_runs(
    first: Judgement, second: Judgement, *, tasks: Sequence[str] = (), metrics: Sequence[str] = ()
) -> dict[str, Any]:
    """What the first run's model has more than the second's: means, difference, p-values, effect size, as JSON.

    P-values are corrected (Holm) for all tasks and metrics that are compared here.

    Args:
        tasks: which; none means all. metrics: which; none means the main metrics of the first run that both have.

    Raises:
        UserError: the runs were not asked alike, or there is no such task or metric.
    """
    check_alike(first, second)
    tasks = _chosen("--task", tasks, first.tasks, second.tasks, first.tasks)
    metrics = _chosen("--metric", metrics, first.measures, second.measures, first.about["main_metrics"])
    return {
        "format": FORMAT,
        "first": first.place,
        "second": second.place,
        **alike(first),
        "num_comparisons": len(tasks) * len(metrics),
        "tasks": compare_tasks(dict.fromkeys(tasks, (first, second)), metrics),
    }


def alike(judgement: Judgement) -> dict[str, Any]:
    """On what judgements that are compared agree."""
    return {key: judgement.about[key] for key in _ALIKE}


def compare_tasks(
    judged: Mapping[str, tuple[Judgement, Judgement]],
    metrics: Sequence[str],
    names: tuple[str, str] = ("first", "second"),
) -> dict[str, Any]:
    """Per task number of anchors and, by metric, both means and what the first model has more, as JSON.

    P-values are corrected (Holm) for all tasks and metrics.

    Args:
        judged: the two judgements of each task. names: what their means are called.

    Raises:
        UserError: two were not asked alike.
    """
    found: dict[tuple[str, str], Comparison] = {}
    results: dict[str, Any] = {}
    for task, (first, second) in judged.items():
        check_alike(first, second)
        one, other = first.read(task, metrics), second.read(task, metrics)
        check_anchors(first, second, task, one, other)
        values = [{name: table[name].to_numpy() for name in metrics} for table in (one, other)]
        comparisons = compare(values[0], values[1], flips=flips_for(len(judged) * len(metrics)))
        found |= {(task, name): comparison for name, comparison in comparisons.items()}
        means = [{name: _mean(value_B) for name, value_B in named.items()} for named in values]
        results[task] = {
            "num_anchors": len(one),
            "metrics": {name: {names[0]: means[0][name], names[1]: means[1][name]} for name in metrics},
        }
    for (task, name), p_holm in zip(found, holm([one.p_value for one in found.values()]), strict=True):
        results[task]["metrics"][name] |= comparison_json(found[task, name], p_holm)
    return dict(without_nan(results))


def check_alike(first: Judgement, second: Judgement) -> None:
    """Refuses to compare what was not judged on the same.

    Raises:
        UserError: names what differs.
    """
    for key, what in _ALIKE.items():
        if first.about[key] != second.about[key]:
            remedy = "train and evaluate both on one dataset" if key == "dataset" else f"choose evaluate.{key} alike"
            raise UserError(
                f"'{first.place}' and '{second.place}' differ in their {what} ({first.about[key]} and "
                f"{second.about[key]}): only what was judged on the same can be compared; {remedy}"
            )


def _mean(value_B: np.ndarray) -> float:
    """Mean over the anchors that have a value."""
    known = value_B[~np.isnan(value_B)]
    return float(known.mean()) if len(known) else float("nan")


def _chosen(
    what: str, asked: Sequence[str], first: Sequence[str], second: Sequence[str], default: Sequence[str]
) -> list[str]:
    """What is asked for, or what both have of the default."""
    both = [name for name in first if name in second]
    chosen = list(dict.fromkeys(asked)) or [name for name in default if name in both]
    for name in chosen:
        if name not in both:
            raise UserError(f"{what} {name}: not in both evaluations, which share {', '.join(both) or 'none'}")
    if not chosen:
        raise UserError(f"the evaluations share none of {', '.join(default)}: choose with {what}, or evaluate again")
    return chosen


def check_anchors(first: Judgement, second: Judgement, task: str, one: pa.Table, other: pa.Table) -> None:
    """Refuses to pair anchors that are not the same.

    Args:
        one, other: `anchor` and `relevant` of each, by anchor.

    Raises:
        UserError: names the first anchor that differs.
    """
    asked = ["anchor", "relevant"]
    if one.select(asked).equals(other.select(asked)):
        return
    relevant = [dict(zip(t["anchor"].to_pylist(), t["relevant"].to_pylist(), strict=True)) for t in (one, other)]
    for anchor in sorted(relevant[0].keys() | relevant[1].keys()):
        counts = [answers.get(anchor, 0) for answers in relevant]
        if counts[0] != counts[1]:
            raise UserError(
                f"task '{task}': anchor '{anchor}' has {counts[0]} right answers in '{first.place}' and {counts[1]} in "
                f"'{second.place}': evaluate both again"
            )
