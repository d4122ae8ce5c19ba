"""Writes pairs, truth and vocabularies, once entities have their final rows."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import SPLITS, PreparedDataset, TaskInfo
from torchrec_mt.data.preparation.columns import Want, parquet_files
from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.data.preparation.groups import scramble
from torchrec_mt.data.preparation.known import write_frequencies, write_known
from torchrec_mt.data.preparation.pairs import TaskPairs
from torchrec_mt.data.preparation.sources import Source
from torchrec_mt.data.preparation.vocabulary import Vocabulary
from torchrec_mt.errors import UserError
from torchrec_mt.schema import GivenPairs, Task, Truth

ROW_GROUP = 16_384

_PAIRS = pa.schema(
    [("anchor", pa.int64()), ("candidate", pa.int64())]
    + [(name, pa.float32()) for name in ("count", "weight", "grade")]
)


def write_task(
    engine: Engine,
    dataset: PreparedDataset,
    name: str,
    task: Task,
    pairs: TaskPairs,
    rows: dict[str, ir.Table],
    counts: Mapping[str, int],
) -> TaskInfo:
    """Writes `pairs/NAME/*.parquet` (in an order that mixes anchors), and what known.py makes of the training part.

    Args:
        rows: per entity the columns key and row.
        counts: number of entities of each kind.
    """
    placed = engine.cache(_placed(pairs.table, task, rows))
    numbers: dict[str, int] = {}
    distinct: dict[str, int] = {}
    for part, split in enumerate(SPLITS):
        here = placed.filter(placed.part == part)
        found = engine.one(here.agg(n=here.count(), anchors=here.anchor.nunique()))
        numbers[split], distinct[split] = found["n"], found["anchors"]
        mixed = here.mutate(mix=scramble(here.anchor, here.candidate))
        ordered = mixed.order_by("mix", "anchor", "candidate").drop("part", "mix")
        weighted = (_weighted(batch, task) for batch in engine.batches(ordered))
        write_blocks(dataset.pairs_path(name, split), _PAIRS, weighted, ROW_GROUP)
    train = placed.filter(placed.part == 0).select("anchor", "candidate")
    write_frequencies(engine, dataset, name, task, counts, train)
    info = TaskInfo(
        anchor=task.anchor, candidate=task.candidate, trained_as=task.trained_as,
        pairs=numbers, anchors=distinct, rejected=pairs.rejected, notes=pairs.notes,
    )  # fmt: skip
    if task.trained_as is None:
        ignored, negatives = (
            None if table is None else _placed(table, task, rows)
            for table in (pairs.marked.ignored, pairs.marked.negatives)
        )
        known = train if ignored is None else train.union(ignored, distinct=False)
        info.notes.update(write_known(engine, dataset, name, task, counts, known, ignored, negatives))
    engine.drop(placed)
    return info


def _placed(table: ir.Table, task: Task, rows: dict[str, ir.Table]) -> ir.Table:
    """The same table with rows in place of the keys `anchor` and `candidate`."""
    anchors = rows[task.anchor].select(anchor="key", anchor_row="row")
    ends = rows[task.candidate].select(candidate="key", candidate_row="row")
    joined = table.inner_join(anchors, "anchor").inner_join(ends, "candidate").drop("anchor", "candidate")
    return joined.rename(anchor="anchor_row", candidate="candidate_row").select(*table.columns)


def _weighted(batch: pa.RecordBatch, task: Task) -> pa.RecordBatch:
    """Loss weights by `Task.weighting`, times the summed weight column where the data has one."""
    count, given = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("count", "weight"))
    match task.weighting:
        case "uniform":
            weight = np.ones(len(count))
        case "count":
            weight = count
        case "log_count":
            weight = np.log1p(count)
    if isinstance(task.pairs, GivenPairs) and task.pairs.weight is not None:
        weight = weight * given
    columns = {name: batch.column(name) for name in ("anchor", "candidate", "count", "grade")} | {
        "weight": pa.array(weight)
    }
    return pa.RecordBatch.from_arrays([columns[field.name].cast(field.type) for field in _PAIRS], schema=_PAIRS)


def write_truth(
    engine: Engine,
    dataset: PreparedDataset,
    name: str,
    task: Task,
    truth: Truth,
    source: Source,
    rows: dict[str, ir.Table],
) -> int:
    """Writes `truth/NAME.parquet`, best first; returns how many rows named unknown entities.

    Raises:
        UserError: missing or mistyped column, null ids, or a score that is no finite number.
    """
    wanted: dict[str, Want] = {truth.anchor: "value", truth.candidate: "value", truth.score: "number"}
    raw = engine.read(parquet_files(source, wanted, engine.scratch), source)
    named = raw.select(
        a=raw[truth.anchor].cast("string"),
        c=raw[truth.candidate].cast("string"),
        score=raw[truth.score].cast("float64"),
    )
    # Cached before the check: DuckDB 2.0 skips Parquet row groups by their statistics, which know no NaN.
    named = engine.cache(named, source)
    nameless = engine.one(named.filter(named.a.isnull() | named.c.isnull()).agg(n=ibis._.count()))["n"]
    if nameless:
        raise UserError(
            f"{source.key}: {nameless} rows of '{source.path}' have a null '{truth.anchor}' or '{truth.candidate}'; "
            "mend or drop these rows"
        )
    bad = named.filter(named.score.isnull() | named.score.isnan() | named.score.isinf())
    found = engine.one(bad.agg(n=bad.count(), a=bad.a.min()))
    if found["n"]:
        raise UserError(
            f"{source.key}: {found['n']} rows of '{source.path}' have a '{truth.score}' that is no finite number, "
            f"as at {truth.anchor} '{found['a']}'; mend or drop these rows"
        )
    total = engine.one(named.agg(n=named.count()))["n"]
    anchors = rows[task.anchor].select(a="id", anchor="row")
    ends = rows[task.candidate].select(c="id", candidate="row")
    known = engine.cache(named.inner_join(anchors, "a").inner_join(ends, "c").select("anchor", "candidate", "score"))
    kept = engine.one(known.agg(n=known.count()))["n"]
    best = known.group_by("anchor", "candidate").agg(score=known.score.max())
    ordered = best.order_by("anchor", ibis._.score.desc(), "candidate")
    schema = pa.schema([("anchor", pa.int64()), ("candidate", pa.int64()), ("score", pa.float64())])
    write_blocks(
        dataset.truth_path(name), schema, (batch.cast(schema) for batch in engine.batches(ordered)), 4 * ROW_GROUP
    )
    engine.drop(known)
    engine.drop(named)
    return total - kept


def write_vocabulary(dataset: PreparedDataset, name: str, vocabulary: Vocabulary) -> None:
    """Writes `vocabulary/NAME.parquet`."""
    write_table(dataset.vocabulary_path(name), vocabulary.table)


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a small table, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_blocks(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], rows: int) -> None:
    """Writes batches of any size as row groups of `rows` rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        for block in _blocks(schema, batches, rows):
            writer.write_table(block, row_group_size=rows)


def _blocks(schema: pa.Schema, batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += len(batch)
        if count >= rows:
            table = pa.Table.from_batches(held, schema)
            whole = count - count % rows
            yield table.slice(0, whole)
            held, count = table.slice(whole).to_batches(), count - whole
    if count:
        yield pa.Table.from_batches(held, schema)
