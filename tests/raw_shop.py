"""Raw tables and schemas small enough to count by hand, for tests of preparation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import PreparedDataset, Split
from torchrec_mt.data.links import Links
from torchrec_mt.data.preparation import prepare
from torchrec_mt.schema import (
    Entity,
    GivenPairs,
    GroupPairs,
    GroupSplit,
    IdFeature,
    Schema,
    Table,
    Task,
    TextFeature,
    TimeSplit,
)

Rows = dict[str, list[Any]]

PRODUCTS: Rows = {
    "sku": ["a", "b", "c", "d", "e"],
    "title": ["red wool hat", "blue wool hats", "tea", "green tea", "tea pot"],
    "kind": ["hat", "hat", "tea", "tea", "pot"],
    "price": [1.0, 2.0, 3.0, 4.0, None],
}
QUERIES: Rows = {"query": ["q1", "q2"], "words": ["hat", "tea"]}
CLICKS: Rows = {
    "query": ["q1", "q1", "q1", "q2", "q2", "q2", "q1", "q2"],
    "sku": ["a", "a", "b", "c", "d", "c", "b", "d"],
    "time": [1, 2, 3, 4, 5, 6, 90, 95],
}
BASKETS: Rows = {
    "basket": ["1", "1", "2", "2", "2", "9", "9", "10", "10"],
    "sku": ["a", "b", "a", "b", "c", "a", "c", "d", "e"],
    "line": [0, 1, 0, 2, 1, 0, 1, 0, 1],
    "time": [1, 1, 2, 2, 2, 90, 90, 95, 95],
}
SPLIT = TimeSplit(kind="time", valid_from=50, test_from=93)


def write_raw(folder: Path, **tables: Rows) -> Path:
    """products, queries, clicks and baskets as Parquet; a keyword replaces a table."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {
        "products": PRODUCTS,
        "queries": QUERIES,
        "clicks": CLICKS,
        "baskets": BASKETS,
        **tables,
    }.items():
        pq.write_table(pa.table(rows), folder / f"{name}.parquet")
    return folder


def given(**settings: Any) -> GivenPairs:
    base = GivenPairs(kind="given", path="clicks.parquet", anchor="query", candidate="sku", time="time")
    return replace(base, **settings)


def groups(**settings: Any) -> GroupPairs:
    base = GroupPairs(kind="groups", path="baskets.parquet", group=("basket",), item="sku", time="time")
    return replace(base, **settings)


def make_schema(**settings: Any) -> Schema:
    """Search from clicks and `together` from baskets, split by time; a keyword replaces a field of the schema."""
    product = {
        "key": IdFeature(kind="id", table="sku"),
        "title": TextFeature(kind="text", columns=("title",), table="words", char_ngrams=()),
    }
    base = Schema(
        tables={"sku": Table(dim=8), "words": Table(dim=8)},
        entities={
            "query": Entity(
                path="queries.parquet",
                id="query",
                features={"text": TextFeature(kind="text", columns=("words",), table="words", char_ngrams=())},
            ),
            "product": Entity(path="products.parquet", id="sku", features=product),
        },
        tasks={
            "search": Task(anchor="query", candidate="product", pairs=given()),
            "together": Task(anchor="product", candidate="product", pairs=groups()),
        },
        split=SPLIT,
    )
    return replace(base, **settings)


def with_pairs(pairs: GivenPairs | GroupPairs, **settings: Any) -> Schema:
    """The schema with other pairs for the task of their kind."""
    schema = make_schema(**settings)
    name = "search" if isinstance(pairs, GivenPairs) else "together"
    return replace(schema, tasks={**schema.tasks, name: replace(schema.tasks[name], pairs=pairs)})


def by_group(schema: Schema, split: GroupSplit) -> Schema:
    """The schema split by group instead: no task names a time."""
    tasks = {name: replace(task, pairs=replace(task.pairs, time=None)) for name, task in schema.tasks.items()}
    return replace(schema, split=split, tasks=tasks)


def with_features(**features: Any) -> Schema:
    """The schema with more (or other) product features."""
    schema = make_schema()
    product = schema.entities["product"]
    tables = schema.tables | ({"kind": Table(dim=8)} if any(hasattr(f, "table") for f in features.values()) else {})
    return replace(
        schema,
        tables=tables,
        entities={**schema.entities, "product": replace(product, features={**product.features, **features})},
    )


def run(tmp_path: Path, schema: Schema, *, permutation_check: bool = False, **tables: Rows) -> PreparedDataset:
    """Writes the tables and prepares them."""
    raw = write_raw(tmp_path / "raw", **tables)
    result = prepare(schema, name="t", raw=raw, output=tmp_path / "out", permutation_check=permutation_check)
    return result.dataset


def ids(dataset: PreparedDataset, entity: str) -> list[str]:
    return pq.read_table(dataset.entity_path(entity), columns=["id"])["id"].to_pylist()


def pairs(dataset: PreparedDataset, task: str, split: Split = "train") -> dict[tuple[str, str], float]:
    """(anchor id, candidate id) -> count."""
    info = dataset.manifest.tasks[task]
    anchors, candidates = ids(dataset, info.anchor), ids(dataset, info.candidate)
    rows = dataset.pairs(task, split)
    return {
        (anchors[a], candidates[c]): float(n)
        for a, c, n in zip(rows["anchor"], rows["candidate"], rows["count"], strict=True)
    }


def named_links(dataset: PreparedDataset, links: Links | None, owner: str, linked: str) -> dict[str, list[str]]:
    """Links by id: each entity that has some -> the ids it is linked to, in order of rows."""
    assert links is not None
    owners, names = ids(dataset, owner), ids(dataset, linked)
    found: dict[str, list[str]] = {}
    for position, row in zip(*links.of(np.arange(len(owners))), strict=True):
        found.setdefault(owners[position], []).append(names[row])
    return found


def known(dataset: PreparedDataset, task: str) -> dict[str, list[str]]:
    """Known candidates of each anchor of a task, by id."""
    info = dataset.manifest.tasks[task]
    return named_links(dataset, dataset.known_candidates(task), info.anchor, info.candidate)


def negatives(dataset: PreparedDataset, task: str) -> dict[str, list[str]]:
    """Named negatives of each anchor of a task, by id."""
    info = dataset.manifest.tasks[task]
    return named_links(dataset, dataset.named_negatives(task), info.anchor, info.candidate)
