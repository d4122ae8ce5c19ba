"""Experiments whose runs nobody trained: folders with what results are made of, and their results."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.config import load_config
from torchrec_mt.retrieval.records import ABOUT
from torchrec_mt.workflows.grid import Done
from torchrec_mt.workflows.grid_config import Cell, Grid, Method
from torchrec_mt.workflows.grid_results import grid_results

DATASET = """
[dataset.tasks.search_by_words]
anchor = "query"
candidate = "product"
trained_as = "search"
pairs = { kind = "given", path = "clicks.parquet", anchor = "query_id", candidate = "product_id" }
"""
TASKS = ("search", "similar", "search_by_words")
Log = Iterable[Mapping[str, Any]]


def logged(ms: float, *, telemetry: bool = True, shift: float = 0.0) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl of a run of 100 steps on two tasks: validations at 50 (the best) and 100.

    Args:
        telemetry: whether weights and cosines are there. shift: what all values have more.
    """
    lines: list[dict[str, Any]] = []
    for step in (1, 50, 100):
        line = {"step": step, "kind": "train", "ms/loss": ms, "ms/idle": 1.0}
        line |= {f"loss/{task}": 2.0 - step / 100 + shift for task in ("search", "similar")}
        if telemetry:
            line |= {
                "weight/search": 1.0 + step / 100,
                "weight/similar": 1.0,
                "cosine/search/similar": 0.2 - step / 200,
            }
        lines.append(line)
        if step > 1:
            value = 0.5 - step / 1000 + shift
            valid = {"search/recall@100": value, "similar/recall@100": value + 0.1, "chosen": value + 0.05}
            lines.append({"step": step, "kind": "valid", **valid})
    return lines


def run_of(folder: Path, values: Mapping[str, np.ndarray], log: Log) -> Path:
    """A run folder with what results are made of: per task a value of recall@100 for each anchor."""
    file = folder / "evaluation/anchors.parquet"
    file.parent.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {
            "task": task,
            "system": system,
            "anchor": f"{anchor:04}",
            "relevant": 1 + anchor % 3,
            "recall@100": float(value),
            "target_training": "cold" if anchor % 2 else "warm",
        }
        for system in ("model", "popularity")
        for task, value_B in values.items()
        for anchor, value in reversed(list(enumerate(value_B)))
    ]
    metrics = ["recall@100"]
    about = {"dataset": "made", "split": "test", "max_anchors": 0, "metrics": metrics, "main_metrics": metrics}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata({ABOUT: json.dumps(about)}), file)
    held = [{"weights": 1000, "sums": 24, "dense": 400}, {"weights": 1000, "sums": 0, "dense": 400}]
    (folder / "held.json").write_text(json.dumps(held))
    machine = {"platform": "Linux", "cores": 2, "versions": {"torch": "2.13", "torchrec": "1.8"}}
    (folder / "environment.json").write_text(json.dumps(machine))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return file


def experiment(
    folder: Path,
    *,
    seeds: Sequence[int] = (0, 1),
    methods: Sequence[str] = ("plain", "good"),
    failed: bool = True,
    telemetry: bool = True,
    gain: float = 0.1,
    question: str = "Is it better?",
    settings: Sequence[str] = ("model.dim=128",),
    why: str = "the loss is no finite number",
) -> dict[str, Any]:
    """Methods beside `plain`: each is better on search, alike on similar, worse on similar's cold anchors and slower.

    Args:
        failed: whether there is a cell that failed, for this reason (`why`). gain: on search. settings: of all but
            `plain`.
    """
    (folder / "words.toml").write_text(DATASET)
    base = ("launch/demo.toml", str(folder / "words.toml"))
    grid = Grid(
        question=question,
        base=base,
        output=str(folder),
        reference="plain",
        seeds=tuple(seeds),
        metrics=("recall@100",),
        methods={"plain": Method(), "bad": Method()}
        | {name: Method(settings=tuple(settings)) for name in methods if name != "plain"},
    )
    config, draw, done = load_config(base), np.random.default_rng(0), []
    truth = {task: draw.random(200) * 0.5 for task in TASKS}
    for seed in seeds:
        for at, method in enumerate(methods):
            more = gain if method != "plain" else 0.0
            values = {task: truth[task] + draw.normal(0, 0.01, 200) for task in TASKS}
            values["search"] += more
            values["search_by_words"] += more
            values["similar"] += more * np.where(np.arange(200) % 2, -0.5, 0.5)
            place = folder / f"cell-{at}/seed-{seed}"
            log = logged(9.0 + 10 * at, telemetry=telemetry, shift=seed / 100)
            done.append(Done(Cell(method, seed, None, config, place), (run_of(place, values, log),)))
    if failed:
        done.append(Done(Cell("bad", seeds[0], None, config, folder / "bad"), failure=why))
    return grid_results(grid, done)
