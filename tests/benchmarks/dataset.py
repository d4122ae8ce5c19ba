"""A large dataset written straight in prepared form: two entities, four tables of a million rows each, some tasks."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import (
    MANIFEST,
    EntityInfo,
    FeatureInfo,
    Manifest,
    PreparedDataset,
    TaskInfo,
    manifest_to_json,
)
from torchrec_mt.data.links import offsets_of, write_links
from torchrec_mt.schema import (
    CategoryFeature,
    Entity,
    GivenPairs,
    IdFeature,
    Schema,
    Table,
    Task,
    TextFeature,
    TimeSplit,
)

ROWS, DIM, TOKENS_PER_BAG = 1_000_000, 64, 5
ONE_TASK = {"search": "query"}
THREE_TASKS = {"search": "query", "similar": "product", "complement": "product"}
"""Tasks and their anchors' entity; candidates are products."""


def bench_schema(dim: int = DIM, tasks: Mapping[str, str] = ONE_TASK) -> Schema:
    """query (id, words) -> product (id, words, brand), or more tasks; words share a table."""
    words = TextFeature(kind="text", columns=("text",), table="words")
    return Schema(
        tables={name: Table(dim=dim) for name in ("query_id", "product_id", "words", "brand")},
        entities={
            "query": Entity(
                path="q", id="id", features={"id": IdFeature(kind="id", table="query_id", dropout=0.0), "text": words}
            ),
            "product": Entity(
                path="p",
                id="id",
                features={
                    "id": IdFeature(kind="id", table="product_id", dropout=0.0),
                    "text": words,
                    "brand": CategoryFeature(kind="category", column="brand", table="brand"),
                },
            ),
        },
        tasks={
            name: Task(
                anchor=anchor,
                candidate="product",
                pairs=GivenPairs(kind="given", path=name, anchor="a", candidate="p"),
            )
            for name, anchor in tasks.items()
        },
        split=TimeSplit(kind="time"),
    )


def write_bench_dataset(
    path: Path,
    *,
    pairs: int = 1_000_000,
    rows: int = ROWS,
    words: int | None = None,
    tasks: Mapping[str, str] = ONE_TASK,
) -> PreparedDataset:
    """Anchors evenly, candidates by a Zipf law (as clicks come), words evenly.

    Args:
        pairs: of each task.
        rows: of every table. words: of the table of words, where it has others.
    """
    rng = np.random.default_rng(0)
    tables = {"query_id": rows, "product_id": rows, "words": words or rows, "brand": rows}
    infos = {
        "query": EntityInfo(count=rows, cold=0, features={"id": _sparse("id", "query_id", 1), "text": _words()}),
        "product": EntityInfo(
            count=rows,
            cold=0,
            features={
                "id": _sparse("id", "product_id", 1),
                "text": _words(),
                "brand": _sparse("category", "brand", 1),
            },
        ),
    }
    for name, info in infos.items():
        for feature, declared in info.features.items():
            assert declared.table is not None
            shape = (rows, int(declared.mean_bag))
            _write_bags(path / "store" / name, feature, shape, tables[declared.table], rng, own=feature == "id")
    for name in tasks:
        _write_pairs(path, name, rng.integers(0, rows, pairs), popular(rng, pairs, rows), rows)
    manifest = Manifest(
        name="bench",
        tables=tables,
        entities=infos,
        tasks={
            name: TaskInfo(
                anchor=anchor,
                candidate="product",
                trained_as=None,
                pairs={"train": pairs, "valid": 0, "test": 0},
                anchors={"train": rows, "valid": 0, "test": 0},
            )
            for name, anchor in tasks.items()
        },
        split={},
        declaration={},
        sources={},
        fingerprint="",
        digest="",
    )
    (path / MANIFEST).write_text(manifest_to_json(manifest))
    return PreparedDataset.open(path)


def popular(rng: np.random.Generator, count: int, rows: int) -> np.ndarray:
    """Products drawn by Zipf's law: the n-th most popular 1 / n as often as the first."""
    edges = np.cumsum(1.0 / np.arange(1, rows + 1))
    return np.searchsorted(edges, rng.random(count) * edges[-1])


def _sparse(kind: str, table: str, bag: float) -> FeatureInfo:
    return FeatureInfo(kind=kind, table=table, mean_bag=bag)


def _words() -> FeatureInfo:
    return _sparse("text", "words", TOKENS_PER_BAG)


def _write_bags(
    folder: Path, feature: str, shape: tuple[int, int], table_rows: int, rng: np.random.Generator, *, own: bool
) -> None:
    rows, bag = shape
    folder.mkdir(parents=True, exist_ok=True)
    values = np.arange(rows) if own else rng.integers(0, table_rows, rows * bag)
    np.save(folder / f"{feature}.offsets.npy", offsets_of(np.full(rows, bag)))
    np.save(folder / f"{feature}.values.npy", values.astype(np.int32))


def _write_pairs(path: Path, name: str, anchors: np.ndarray, candidates: np.ndarray, rows: int) -> None:
    ones = np.ones(len(anchors), np.float32)
    (path / "pairs" / name).mkdir(parents=True)
    table = pa.table({"anchor": anchors, "candidate": candidates, "count": ones, "weight": ones, "grade": ones})
    pq.write_table(table, path / f"pairs/{name}/train.parquet", row_group_size=16_384)
    for end, ids in (("anchor", anchors), ("candidate", candidates)):
        (path / "frequencies" / name).mkdir(parents=True, exist_ok=True)
        counts = pa.table({"train_count": np.bincount(ids, minlength=rows)})
        pq.write_table(counts, path / f"frequencies/{name}/{end}s.parquet")
    for end, owner, linked in (("candidates", anchors, candidates), ("anchors", candidates, anchors)):
        distinct = np.unique(owner * rows + linked)
        lengths = np.bincount(distinct // rows, minlength=rows)
        write_links(path / "known" / name, end, lengths, rows, [distinct % rows])
