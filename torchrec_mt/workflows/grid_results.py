"""What an experiment found: means over seeds, each method beside the reference anchor by anchor, what each costs, who
loses where.

Two kinds of chance are told apart. The spread over seeds is of the training (standard deviation); intervals and
p-values are of the anchors, on values averaged over the seeds that both methods have. Holm's correction is over all
comparisons.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from torchrec_mt.retrieval.results import MODEL, comparison_json, flips_for, without_nan
from torchrec_mt.retrieval.uncertainty import compare, holm
from torchrec_mt.workflows.grid import Done
from torchrec_mt.workflows.grid_config import Grid

FORMAT = 1
SLICES = ("target_training", "anchor_popularity")
_LEAST = 20
"""Anchors of a slice, below which it is not shown."""
Values = dict[tuple[str, int], dict[str, np.ndarray]]


def grid_results(grid: Grid, done: Sequence[Done]) -> dict[str, Any]:
    """The experiment's outcome as JSON."""
    tables = {(one.cell.method, one.cell.seed): _read(one.records, grid.metrics) for one in done if not one.failure}
    tasks = list(dict.fromkeys(task for table in tables.values() for task in table))
    methods = [name for name in grid.methods if any(method == name for method, _ in tables)]
    found = {
        task: {name: _summary(grid, tables, task, name) for name in methods if _seeds(tables, task, name)}
        for task in tasks
    }
    _compare(grid, tables, found)
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
                "varied": {name: _varied(grid, name) for name in methods},
                "tasks": found,
                "gain": {name: _gain(grid, found, name) for name in methods},
                "cost": {name: _cost([one for one in done if one.cell.method == name]) for name in methods},
                "failed": [
                    {"method": one.cell.method, "seed": one.cell.seed, "why": one.failure}
                    for one in done
                    if one.failure
                ],
            }
        )
    )


def _varied(grid: Grid, name: str) -> list[str]:
    method = grid.methods[name]
    return [f"one model per task (twins of {method.twins_of})"] if method.twins_of else list(method.settings)


def _read(records: Sequence[Path], metrics: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Per task the model's values by anchor: its id, the metrics, the labels of slices; in the order of anchors."""
    found = {}
    for file in records:
        names = pq.read_schema(file).names
        columns = ["task", "anchor", *metrics, *(name for name in SLICES if name in names)]
        table = pq.read_table(file, columns=columns, filters=[("system", "=", MODEL)])
        for task in table["task"].unique().to_pylist():
            rows = table.filter(pq.filters_to_expression([("task", "=", task)])).sort_by("anchor")
            found[task] = {name: rows[name].to_numpy(zero_copy_only=False) for name in columns if name != "task"}
    return found


def _seeds(tables: Mapping[tuple[str, int], Any], task: str, method: str) -> list[int]:
    return [seed for name, seed in tables if name == method and task in tables[name, seed]]


def _mean_values(
    tables: Mapping[tuple[str, int], Any], task: str, method: str, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Per metric the values of every anchor, averaged over seeds."""
    each = [tables[method, seed][task] for seed in seeds]
    names = [name for name in each[0] if name not in ("anchor", *SLICES)]
    return {name: np.mean([one[name].astype(float) for one in each], axis=0) for name in names}


def _summary(grid: Grid, tables: Mapping[tuple[str, int], Any], task: str, method: str) -> dict[str, Any]:
    seeds = _seeds(tables, task, method)
    by_seed = {
        name: [float(np.nanmean(tables[method, seed][task][name].astype(float))) for seed in seeds]
        for name in grid.metrics
    }
    some = tables[method, seeds[0]][task]
    return {
        "num_anchors": len(some["anchor"]),
        "num_seeds": len(seeds),
        "metrics": {
            name: {
                "mean": statistics.fmean(values),
                "sd_over_seeds": statistics.stdev(values) if len(values) > 1 else None,
                "by_seed": dict(zip(map(str, seeds), values, strict=True)),
            }
            for name, values in by_seed.items()
        },
        "slices": _slices(tables, task, method, seeds, grid.metrics[0]),
    }


def _slices(
    tables: Mapping[tuple[str, int], Any], task: str, method: str, seeds: Sequence[int], metric: str
) -> dict[str, dict[str, Any]]:
    """The first metric on slices that are large enough."""
    values_B, labels = _mean_values(tables, task, method, seeds)[metric], tables[method, seeds[0]][task]
    found = {}
    for slicing in SLICES:
        for label in dict.fromkeys(labels.get(slicing, np.array([]))):
            here_B = values_B[labels[slicing] == label] if label is not None else np.array([])
            if len(here_B) >= _LEAST and label != "(mixed)":
                found[f"{slicing}: {label}"] = {"num_anchors": len(here_B), "mean": float(np.nanmean(here_B))}
    return found


def _compare(grid: Grid, tables: Mapping[tuple[str, int], Any], found: Mapping[str, Any]) -> None:
    """Adds to every method but the reference what it has more than that, on the seeds and anchors of both."""
    pairs = [(task, name) for task, methods in found.items() for name in methods if name != grid.reference]
    pairs = [(task, name) for task, name in pairs if grid.reference in found[task]]
    number = len(pairs) * len(grid.metrics)
    compared = {}
    for task, name in pairs:
        seeds = [seed for seed in _seeds(tables, task, name) if seed in _seeds(tables, task, grid.reference)]
        if not seeds:
            continue
        ours, theirs = (_mean_values(tables, task, method, seeds) for method in (name, grid.reference))
        for metric, one in compare(ours, theirs, flips=flips_for(number)).items():
            compared[task, name, metric] = one
        for label, part in found[task][name]["slices"].items():
            other = found[task][grid.reference]["slices"].get(label)
            part["difference"] = part["mean"] - other["mean"] if other else None
    corrected = holm([one.p_value for one in compared.values()])
    for (task, name, metric), p_holm in zip(compared, corrected, strict=True):
        comparison = comparison_json(compared[task, name, metric], p_holm)
        found[task][name]["metrics"][metric]["beside_reference"] = comparison


def _gain(grid: Grid, found: Mapping[str, Any], name: str) -> float | None:
    """Mean over tasks of the first metric's gain over the reference, relative to it (Maninis et al., CVPR 2019)."""
    metric, gains = grid.metrics[0], []
    for methods in found.values():
        if name in methods and grid.reference in methods:
            theirs = methods[grid.reference]["metrics"][metric]["mean"]
            if theirs:
                gains.append(methods[name]["metrics"][metric]["mean"] / theirs - 1)
    return statistics.fmean(gains) if gains else None


def _cost(done: Sequence[Done]) -> dict[str, Any]:
    """Milliseconds of a step, steps, bytes and dense parameters, of all runs of a cell together; means over seeds."""
    cells = [_cost_of(one) for one in done if not one.failure]
    return {key: statistics.fmean(cell[key] for cell in cells) for key in cells[0]} if cells else {}


def _cost_of(one: Done) -> dict[str, float]:
    total = {"step_ms": 0.0, "seconds": 0.0, "table_bytes": 0.0, "dense_parameters": 0.0}
    for file in one.records:
        run = file.parent.parent
        held = json.loads((run / "held.json").read_text())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [sum(v for k, v in line.items() if k.startswith("ms/")) for line in lines if line["kind"] == "train"]
        step_ms = statistics.median(steps[1:] or steps)
        total["step_ms"] += step_ms
        total["seconds"] += step_ms / 1000 * max(line["step"] for line in lines)
        total["table_bytes"] += sum(rank["weights"] + rank["sums"] for rank in held)
        total["dense_parameters"] += held[0]["dense"] / 4
    return total
