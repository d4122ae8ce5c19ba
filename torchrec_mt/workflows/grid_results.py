"""What an experiment found: means over seeds, each method beside the reference anchor by anchor, gains over all tasks,
who loses where; and from the runs' logs what each costs, and how it came there.

Two kinds of chance are told apart. The spread over seeds is of the training (standard deviation); intervals and
p-values are of the anchors, on values averaged over the seeds that both methods have. The comparisons that the plan
names as deciding, the first metric on the trained tasks, have a Holm correction of their own, all others another.
"""

import json
import statistics
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from torchrec_mt.retrieval.gains import Gain, Paired, relative_gains
from torchrec_mt.retrieval.results import comparison_json, flips_for, without_nan
from torchrec_mt.retrieval.slices import BANDS, LEAST
from torchrec_mt.retrieval.uncertainty import bootstrap, compare, holm
from torchrec_mt.workflows.grid import Done
from torchrec_mt.workflows.grid_config import Grid
from torchrec_mt.workflows.grid_curves import curves
from torchrec_mt.workflows.grid_logs import costs, equal_time, read_logs, validated
from torchrec_mt.workflows.grid_values import SLICES, GridValues

FORMAT = 2
"""Of results.json. The first had no intervals of gains and means, no curves and no equal time."""


def grid_results(grid: Grid, done: Sequence[Done]) -> dict[str, Any]:
    """The experiment's outcome as JSON: all that its tables and its page show."""
    values = GridValues.read(done, grid.metrics)
    judged = {method for method, _ in values.cells}
    methods = [name for name in grid.methods if name in judged]
    read = read_logs(done)
    logs = {name: read[name] for name in methods}
    anchor_of = _trained(values, done)
    metric = validated(logs, grid.metrics)
    return dict(
        without_nan(
            {
                "format": FORMAT,
                "question": grid.question,
                "reference": grid.reference,
                "metrics": list(grid.metrics),
                "split": grid.split,
                "seeds": list(grid.seeds),
                "fixed": {"base": list(grid.base), "settings": list(grid.settings)},
                "varied": {name: _varied(grid, name) for name in grid.methods if _has_cells(done, name)},
                "trained": list(anchor_of),
                "tasks": _tasks(grid, values, methods, anchor_of),
                "gain": _all_gains(grid, values, methods, anchor_of),
                "cost": costs(logs),
                "equal_time": equal_time(logs, metric, grid.reference) if metric else None,
                "curves": curves(logs, metric),
                "machines": _machines(done),
                "failed": [
                    {"method": one.cell.method, "seed": one.cell.seed, "why": one.failure}
                    for one in done
                    if one.failure
                ],
            }
        )
    )


def _has_cells(done: Sequence[Done], name: str) -> bool:
    return any(one.cell.method == name for one in done)


def _varied(grid: Grid, name: str) -> list[str]:
    method = grid.methods[name]
    return [f"one model per task (twins of {method.twins_of})"] if method.twins_of else list(method.settings)


def _machines(done: Sequence[Done]) -> dict[str, list[str]]:
    """On what the runs were made, each with the methods that ran there."""
    found: dict[str, list[str]] = {}
    for one in done:
        for file in one.records:
            told = json.loads((file.parent.parent / "environment.json").read_text())
            versions = ", ".join(f"{name} {told['versions'][name]}" for name in ("torch", "torchrec"))
            parts = [told["platform"], f"{told['cores']} cores", told.get("accelerator"), versions]
            methods = found.setdefault(", ".join(filter(None, parts)), [])
            methods += [one.cell.method] if one.cell.method not in methods else []
    return found


def _tasks(grid: Grid, values: GridValues, methods: Sequence[str], trained: Container[str]) -> dict[str, Any]:
    found = {
        task: {name: _summary(values, task, name) for name in methods if values.seeds(task, name)}
        for task in values.tasks
    }
    _compare(grid, values, found, trained)
    return found


def _summary(values: GridValues, task: str, method: str) -> dict[str, Any]:
    seeds = values.seeds(task, method)
    averaged = values.mean(task, method, seeds)
    means = bootstrap(averaged)
    first_B = averaged[values.metrics[0]]
    metrics = {}
    for name, over_anchors in means.items():
        by_seed = [float(np.nanmean(values.cells[method, seed][task][name].astype(float))) for seed in seeds]
        metrics[name] = {
            "mean": statistics.fmean(by_seed),
            "low": over_anchors.low,
            "high": over_anchors.high,
            "sd_over_seeds": statistics.stdev(by_seed) if len(seeds) > 1 else None,
            "by_seed": dict(zip(map(str, seeds), by_seed, strict=True)),
        }
    return {
        "num_anchors": len(values.labels(task, method)["anchor"]),
        "num_seeds": len(seeds),
        "metrics": metrics,
        "slices": {
            label: {"num_anchors": int(in_B.sum()), "mean": float(np.nanmean(first_B[in_B]))}
            for label, in_B in _slices(values, task, method)
        },
    }


def _slices(values: GridValues, task: str, method: str) -> Iterator[tuple[str, np.ndarray]]:
    """Slices that are large enough, each with whether an anchor is in it."""
    labels = values.labels(task, method)
    for slicing in SLICES:
        found = dict.fromkeys(labels.get(slicing, np.array([])))
        for label in sorted(found, key=lambda label: BANDS.index(label) if label in BANDS else -1):
            in_B = labels[slicing] == label
            if label not in (None, "(mixed)") and in_B.sum() >= LEAST:
                yield f"{slicing}: {label}", in_B


def _compare(grid: Grid, values: GridValues, found: Mapping[str, Any], trained: Container[str]) -> None:
    """Adds to every method but the reference what it has more than that, on the seeds and anchors of both.

    Holm's correction is by itself for the comparisons that decide, the first metric on the `trained` tasks.
    """
    pairs = [(task, name) for task, methods in found.items() for name in methods if name != grid.reference]
    pairs = [(task, name) for task, name in pairs if values.seeds(task, name, grid.reference)]
    number = len(pairs) * len(grid.metrics)
    compared = {}
    for task, name in pairs:
        ours, theirs = _both(values, task, name, grid.reference)
        for metric, one in compare(ours, theirs, flips=flips_for(number)).items():
            compared[task, name, metric] = one
        difference_B = ours[grid.metrics[0]] - theirs[grid.metrics[0]]
        for label, in_B in _slices(values, task, name):
            over_anchors = bootstrap({"": difference_B[in_B]})[""]
            found[task][name]["slices"][label] |= {
                "difference": over_anchors.mean,
                "low": over_anchors.low,
                "high": over_anchors.high,
            }
    decides = {key: key[0] in trained and key[2] == grid.metrics[0] for key in compared}
    for family in (True, False):
        keys = [key for key in compared if decides[key] == family]
        corrected = holm([compared[key].p_value for key in keys])
        for (task, name, metric), p_holm in zip(keys, corrected, strict=True):
            comparison = comparison_json(compared[task, name, metric], p_holm)
            ours, theirs = (found[task][one]["metrics"][metric]["by_seed"] for one in (name, grid.reference))
            more = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
            found[task][name]["metrics"][metric]["beside_reference"] = comparison | {
                "decides": family,
                "seeds": len(more),
                "seeds_alike": sum(bool(np.sign(one) == np.sign(comparison["difference"])) for one in more),
            }


def _both(values: GridValues, task: str, *methods: str) -> list[dict[str, np.ndarray]]:
    """value_B by metric of each method, on the seeds that all have."""
    seeds = values.seeds(task, *methods)
    return [values.mean(task, name, seeds) for name in methods]


def _trained(values: GridValues, done: Sequence[Done]) -> dict[str, str]:
    """Judged tasks that were trained, each with the entity of its anchors; the others are other ways to score them."""
    trained = done[0].cell.config.dataset.trained_tasks if done else {}
    return {task: one.anchor for task, one in trained.items() if task in values.tasks}


def _all_gains(grid: Grid, values: GridValues, methods: Sequence[str], anchor_of: Mapping[str, str]) -> dict[str, Any]:
    """Of every method but the reference its gain over that in the first metric, by trained task and over all.

    Args:
        anchor_of: trained tasks and the entities of their anchors.
    """
    found = {}
    for name in methods:
        tasks = {}
        for task, entity in anchor_of.items():
            if name != grid.reference and values.seeds(task, name, grid.reference):
                ours, theirs = (both[grid.metrics[0]] for both in _both(values, task, name, grid.reference))
                anchors = [(entity, anchor) for anchor in values.labels(task, name)["anchor"]]
                tasks[task] = Paired(anchors=anchors, first=ours, second=theirs)
        if tasks:
            each, over_all = relative_gains(tasks)
            found[name] = {
                "tasks": {task: _gain_json(one) for task, one in each.items()},
                "all": _gain_json(over_all) | {"num_tasks": sum(not np.isnan(one.gain) for one in each.values())},
            }
    return found


def _gain_json(gain: Gain) -> dict[str, float]:
    return {"gain": gain.gain, "low": gain.low, "high": gain.high}
