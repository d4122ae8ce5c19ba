"""What the cells of an experiment were judged to be worth, anchor by anchor: the values behind its tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.retrieval.comparison import Judgement, check_alike, check_anchors
from torchrec_mt.retrieval.results import MODEL
from torchrec_mt.workflows.grid import Done

SLICES = ("target_training", "anchor_popularity")
Columns = dict[str, np.ndarray]
First = dict[str, tuple[Judgement, pa.Table]]
"""By task what all others are held to: a judgement, with its anchors."""


@dataclass(frozen=True)
class GridValues:
    """Values of the models of all cells that did not fail.

    Args:
        cells: by method and seed, per task its columns in the order of anchors: `anchor`, the metrics, and of `SLICES`
            the labels that there are.
    """

    metrics: tuple[str, ...]
    cells: Mapping[tuple[str, int], Mapping[str, Columns]]

    @classmethod
    def read(cls, done: Sequence[Done], metrics: Sequence[str]) -> "GridValues":
        """Reads `anchors.parquet` of every cell.

        Raises:
            UserError: two were not judged on the same anchors of the same dataset.
        """
        first: First = {}
        cells = {
            (one.cell.method, one.cell.seed): _read(one.records, metrics, first) for one in done if not one.failure
        }
        return cls(tuple(metrics), cells)

    @property
    def tasks(self) -> list[str]:
        """Judged tasks, in order."""
        return list(dict.fromkeys(task for cell in self.cells.values() for task in cell))

    def seeds(self, task: str, *methods: str) -> list[int]:
        """Seeds with which all these methods were judged on the task."""
        found = list(dict.fromkeys(seed for _, seed in self.cells))
        return [seed for seed in found if all(task in self.cells.get((name, seed), {}) for name in methods)]

    def labels(self, task: str, method: str) -> Columns:
        """Anchors and their labels of slices."""
        columns = self.cells[method, self.seeds(task, method)[0]][task]
        return {name: column for name, column in columns.items() if name not in self.metrics}

    def mean(self, task: str, method: str, seeds: Sequence[int]) -> dict[str, np.ndarray]:
        """value_B by metric, averaged over seeds."""
        each = [self.cells[method, seed][task] for seed in seeds]
        return {name: np.mean([one[name].astype(float) for one in each], axis=0) for name in self.metrics}


def _read(records: Sequence[Path], metrics: Sequence[str], first: First) -> dict[str, Columns]:
    found = {}
    for file in records:
        judgement = Judgement.open(str(file.parent.parent), file)
        names = pq.read_schema(file).names
        columns = ["task", "anchor", "relevant", *metrics, *(name for name in SLICES if name in names)]
        table = pq.read_table(file, columns=columns, filters=[("system", "=", MODEL)])
        for task in judgement.tasks:
            rows = table.filter(pq.filters_to_expression([("task", "=", task)])).sort_by("anchor")
            known, anchors = first.setdefault(task, (judgement, rows.select(["anchor", "relevant"])))
            check_alike(known, judgement)
            check_anchors(known, judgement, task, anchors, rows)
            kept = [name for name in columns if name not in ("task", "relevant")]
            found[task] = {name: rows[name].to_numpy(zero_copy_only=False) for name in kept}
    return found
