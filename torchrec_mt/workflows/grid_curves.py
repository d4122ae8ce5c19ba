"""How the runs of an experiment came where they are: losses, validations, gradients' cosines and weights over steps.

One curve per method: the mean over its seeds at the steps that all of them logged, with the lowest and the highest.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from torchrec_mt.workflows.grid_logs import Logs, RunLog, by_task

POINTS = 100
"""Of a curve, at most: a longer one is cut into so many parts of as many lines, and a part is told by its mean."""
KINDS = ("loss", "valid", "cosine", "weight")
_SAME = 1e-6
Series = dict[int, float]
"""Value by step."""


def curves(logs: Logs, metric: str | None) -> dict[str, dict[str, dict[str, Any]]]:
    """By kind, what it is of and method: steps, mean, and with several seeds the lowest and the highest.

    Kinds: `loss` by task; `valid`, the metric by task; `cosine` by two tasks; `weight` by task, of methods whose
    weights change. What no run logged is not there.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
    for name, seeds in logs.items():
        each = [_series(runs, metric) for runs in seeds.values()]
        for kind, what in each[0]:
            curve = _curve([one[kind, what] for one in each if (kind, what) in one])
            if curve:
                found[kind].setdefault(what, {})[name] = curve
    _drop_constant(found["weight"])
    return found


def _series(runs: Sequence[RunLog], metric: str | None) -> dict[tuple[str, str], Series]:
    """Of the runs of a cell, by kind and what it is of."""
    found: dict[tuple[str, str], Series] = {}
    for run in runs:
        for line in run.train:
            for key, value in line.items():
                kind, _, what = key.partition("/")
                if kind in KINDS and math.isfinite(value):
                    found.setdefault((kind, what), {})[line["step"]] = value
        for line in run.valid:
            for task, value in by_task(line, metric).items() if metric else ():
                if math.isfinite(value):
                    found.setdefault(("valid", task), {})[line["step"]] = value
    return found


def _curve(seeds: Sequence[Series]) -> dict[str, Any] | None:
    """Of all seeds that have it; None where they have no step in common."""
    steps = [step for step in seeds[0] if all(step in one for one in seeds)]
    if not steps:
        return None
    value_SL = np.array([[one[step] for step in steps] for one in seeds])
    ends = np.linspace(0, len(steps), min(POINTS, len(steps)) + 1).round().astype(int)
    value_SP = np.stack([value_SL[:, low:high].mean(axis=1) for low, high in pairwise(ends)], axis=1)
    told: dict[str, Any] = {"steps": [steps[high - 1] for high in ends[1:]], "mean": _short(value_SP.mean(axis=0))}
    if len(seeds) > 1:
        told |= {"low": _short(value_SP.min(axis=0)), "high": _short(value_SP.max(axis=0))}
    return told


def _short(values: np.ndarray) -> list[float]:
    """Five digits are more than a chart shows."""
    return [float(f"{value:.5g}") for value in values]


def _drop_constant(weights: dict[str, dict[str, Any]]) -> None:
    """Leaves methods whose weights change in time, for any task."""
    changing = {
        name
        for methods in weights.values()
        for name, curve in methods.items()
        if max(curve["mean"]) - min(curve["mean"]) > _SAME
    }
    for task, methods in list(weights.items()):
        weights[task] = {name: curve for name, curve in methods.items() if name in changing}
        if not weights[task]:
            del weights[task]
