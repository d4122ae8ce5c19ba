"""Writes what is known of a task's training pairs besides the pairs: links both ways, named negatives, frequencies.

Links are sorted in the engine and streamed into memory maps: no table of pairs is ever whole in this process.
"""

from collections.abc import Mapping
from pathlib import Path

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import End, PreparedDataset
from torchrec_mt.data.links import links_bytes, write_links
from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.data.preparation.folder import require_room
from torchrec_mt.schema import Task


def write_known(
    engine: Engine,
    dataset: PreparedDataset,
    name: str,
    task: Task,
    counts: Mapping[str, int],
    known: ir.Table,
    ignored: ir.Table | None,
    negatives: ir.Table | None,
) -> dict[str, float | str]:
    """Writes `known/NAME/` and, where the task names negatives, `negatives/NAME/`; returns notes for the manifest.

    Args:
        counts: number of entities of each kind.
        known, ignored, negatives: distinct pairs: anchor, candidate (rows); the ignored are among the known.
    """
    anchors, candidates = counts[task.anchor], counts[task.candidate]
    forward, backward = {"owner": "anchor", "linked": "candidate"}, {"owner": "candidate", "linked": "anchor"}
    folder = dataset.known_path(name)
    write_linked(engine, folder, "candidates", known.select(**forward), anchors, candidates)
    write_linked(engine, folder, "anchors", known.select(**backward), candidates, anchors)
    notes: dict[str, float | str] = {}
    if ignored is not None:
        links = ignored.select(**forward)
        notes["ignored_pairs"] = write_linked(engine, folder, "ignored", links, anchors, candidates)
    if negatives is not None:
        folder, links = dataset.negatives_path(name), negatives.select(**forward)
        notes["named_negatives"] = write_linked(engine, folder, "candidates", links, anchors, candidates)
    return notes


def write_linked(engine: Engine, folder: Path, name: str, links: ir.Table, owners: int, linked: int) -> int:
    """Writes one direction as `data/links.py` reads it; returns the number of links.

    Args:
        links: distinct pairs of rows: owner, linked.
        owners, linked: number of entities at either end.
    """
    lengths_N = counts_by(engine, links, "owner", owners)
    total = int(lengths_N.sum())
    require_room(folder, links_bytes(owners, total, linked))
    batches = engine.batches(links.order_by("owner", "linked"))
    write_links(folder, name, lengths_N, linked, (batch.column("linked").to_numpy() for batch in batches))
    return total


def write_frequencies(
    engine: Engine, dataset: PreparedDataset, name: str, task: Task, counts: Mapping[str, int], train: ir.Table
) -> None:
    """Writes `frequencies/NAME/{anchors,candidates}.parquet`.

    Args:
        train: training pairs: anchor, candidate (rows).
    """
    ends: dict[End, str] = {"anchor": task.anchor, "candidate": task.candidate}
    for end, entity in ends.items():
        path = dataset.frequencies_path(name, end)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"train_count": counts_by(engine, train, end, counts[entity])}), path)


def counts_by(engine: Engine, table: ir.Table, column: str, rows: int) -> np.ndarray:
    """How many rows of the table hold each number below `rows`: count_N (int64)."""
    counted = engine.arrow(table.group_by(column).agg(n=table.count()))
    count_N = np.zeros(rows, np.int64)
    count_N[counted[column].to_numpy()] = counted["n"].to_numpy()
    return count_N
