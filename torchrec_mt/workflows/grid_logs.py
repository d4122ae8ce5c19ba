"""What the runs of an experiment logged: what a method costs, and how far each comes in the same time.

Time is milliseconds of a step times steps: that of a training, without its validations and checkpoints. A method that
is several runs, one model per task, costs all of them together.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrec_mt.workflows.grid import Done

Line = Mapping[str, Any]
TOLERANCE = 0.05
"""By which share a validation may come after the time that all have: step times are not more certain than that."""


@dataclass(frozen=True)
class RunLog:
    """What one run logged.

    Args:
        train, valid: lines of `metrics.jsonl` of these kinds. steps: that it took. step_ms: median over the lines of
            training after the first. held: bytes of each rank.
    """

    train: Sequence[Line]
    valid: Sequence[Line]
    steps: int
    step_ms: float
    held: Sequence[Mapping[str, float]]

    @classmethod
    def read(cls, run: Path) -> "RunLog":
        """Reads the log of a run folder."""
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        train = [line for line in lines if line["kind"] == "train"]
        each = [sum(value for key, value in line.items() if key.startswith("ms/")) for line in train]
        return cls(
            train=train,
            valid=[line for line in lines if line["kind"] == "valid"],
            steps=max(line["step"] for line in lines),
            step_ms=statistics.median(each[1:] or each),
            held=json.loads((run / "held.json").read_text()),
        )

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return self.step_ms / 1000 * self.steps

    def kept(self, share: float = 1.0) -> Line | None:
        """The validation whose model would be kept, had training ended after this share of its steps; None if there was
        none by then."""
        found = [line for line in self.valid if line["step"] <= share * self.steps and math.isfinite(line["chosen"])]
        return max(found, key=lambda line: line["chosen"], default=None)


Logs = Mapping[str, Mapping[int, Sequence[RunLog]]]
"""By method and seed; of one model per task, those of all."""


def read_logs(done: Sequence[Done]) -> Logs:
    """The logs of all cells that did not fail."""
    found: dict[str, dict[int, list[RunLog]]] = {}
    for one in done:
        if not one.failure:
            runs = [RunLog.read(file.parent.parent) for file in one.records]
            found.setdefault(one.cell.method, {})[one.cell.seed] = runs
    return found


def costs(logs: Logs) -> dict[str, dict[str, float]]:
    """Milliseconds of a step, seconds, bytes of tables and dense parameters, of all runs of a cell together; the steps
    of each run. Means over seeds."""
    found = {}
    for name, seeds in logs.items():
        cells = [_cost(runs) for runs in seeds.values()]
        found[name] = {key: statistics.fmean(cell[key] for cell in cells) for key in cells[0]}
    return found


def _cost(runs: Sequence[RunLog]) -> dict[str, float]:
    return {
        "step_ms": sum(run.step_ms for run in runs),
        "seconds": sum(run.seconds for run in runs),
        "steps": max(run.steps for run in runs),
        "table_bytes": sum(rank["weights"] + rank["sums"] for run in runs for rank in run.held),
        "dense_parameters": sum(run.held[0]["dense"] / 4 for run in runs),
    }


def validated(logs: Logs, metrics: Sequence[str]) -> str | None:
    """The first of the metrics that every run's validations have; None without one."""
    lines = [line for seeds in logs.values() for runs in seeds.values() for run in runs for line in run.valid]
    return next((name for name in metrics if lines and all(by_task(line, name) for line in lines)), None)


def by_task(line: Line, metric: str) -> dict[str, float]:
    """A metric of a validation by task."""
    return {key.rpartition("/")[0]: value for key, value in line.items() if key.endswith(f"/{metric}")}


def equal_time(logs: Logs, metric: str, reference: str) -> dict[str, Any]:
    """How far every method comes on the validation split in the time of the fastest, per task.

    Of each run it is the model that would be kept had training ended then, see `RunLog.kept`. The runs of one model per
    task share the time as they share the whole: each takes the same share of its steps.

    Args:
        metric: of all validations.

    Returns:
        The time in seconds, the metric, and by method: the share of its steps, its number of seeds, and by task mean
        and standard deviation over seeds, the mean with all steps (`whole`), and the mean over tasks of the relative
        difference to the reference on the seeds of both (`gain`).
    """
    seconds = {
        name: statistics.fmean(sum(run.seconds for run in runs) for runs in seeds.values())
        for name, seeds in logs.items()
    }
    budget = min(seconds.values())

    def reached(name: str, *others: str) -> dict[str, dict[str, float | None]]:
        """On the seeds that the others have too."""
        share = min(1.0, budget / seconds[name] * (1 + TOLERANCE))
        seeds = {seed: runs for seed, runs in logs[name].items() if all(seed in logs[other] for other in others)}
        return _reached(seeds, metric, share)

    found = {}
    for name, seeds in logs.items():
        compared = name != reference and reference in logs
        found[name] = {
            "share": min(1.0, budget / seconds[name]),
            "num_seeds": len(seeds),
            "tasks": reached(name),
            "gain": _gain(reached(name, reference), reached(reference, name)) if compared else None,
        }
    return {"seconds": budget, "metric": metric, "methods": found}


def _reached(seeds: Mapping[int, Sequence[RunLog]], metric: str, share: float) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, list[float]]] = {}
    for runs in seeds.values():
        for run in runs:
            for name, line in (("by_then", run.kept(share)), ("whole", run.kept())):
                for task, value in by_task(line, metric).items() if line else ():
                    found.setdefault(task, {"by_then": [], "whole": []})[name].append(value)
    told: dict[str, dict[str, float | None]] = {}
    for task, values in found.items():
        reached = values["by_then"] if len(values["by_then"]) == len(seeds) else []
        told[task] = {
            "mean": statistics.fmean(reached) if reached else None,
            "sd_over_seeds": statistics.stdev(reached) if len(reached) > 1 else None,
            "whole": statistics.fmean(values["whole"]),
        }
    return told


def _gain(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float | None:
    """Mean over tasks of the relative difference; None where a task has no value in time, or they share no seed."""
    gains = []
    for task, one in theirs.items():
        mine = ours.get(task, {}).get("mean")
        if mine is None or not one["mean"]:
            return None
        gains.append(mine / one["mean"] - 1)
    return statistics.fmean(gains) if gains else None
