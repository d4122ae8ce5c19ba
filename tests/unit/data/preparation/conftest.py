"""A small workshop for the tests of preparation: write raw tables, prepare them, read the result back by ids."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.preparation import PreparedResult, prepare
from torchrec_mt.schema import (
    Entity,
    Feature,
    GivenPairs,
    GroupPairs,
    GroupSplit,
    Schema,
    Table,
    Task,
    TextFeature,
    TimeSplit,
)


@dataclass
class Workshop:
    """`raw` is the folder of raw files, `output` where the prepared dataset goes."""

    raw: Path
    output: Path

    def write(self, name: str, content: Mapping[str, Any] | pa.Table | str) -> Path:
        """Writes a Parquet file (of columns) or a text file (of a string)."""
        path = self.raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        else:
            pq.write_table(content if isinstance(content, pa.Table) else pa.table(dict(content)), path)
        return path

    def prepare(self, schema: Schema, **options: Any) -> PreparedResult:
        return prepare(schema, name="test", raw=self.raw, output=self.output, **options)

    def items(self, features: Mapping[str, Feature] | None = None) -> dict[str, Entity]:
        """The one entity `item` of items.parquet."""
        return {"item": Entity(path="items.parquet", id="id", features=dict(features or {}))}

    def schema(self, pairs: GivenPairs | GroupPairs | None = None, **changes: Any) -> Schema:
        """One task `task` from item to item, split at times 100 and 200; `changes` replace parts."""
        pairs = pairs or GivenPairs(kind="given", path="pairs.parquet", anchor="a", candidate="c", time="t")
        parts: dict[str, Any] = {
            "tables": {},
            "entities": self.items(),
            "tasks": {"task": Task(anchor="item", candidate="item", pairs=pairs)},
            "split": TimeSplit(kind="time", valid_from=100, test_from=200),
        }
        return Schema(**(parts | changes))

    def pairs(
        self, dataset: PreparedDataset, task: str = "task", split: Any = "train"
    ) -> dict[tuple[str, str], dict[str, float]]:
        """(anchor id, candidate id) -> count, weight, grade."""
        declared = dataset.manifest.tasks[task]
        anchors, candidates = (self.column(dataset, entity, "id") for entity in (declared.anchor, declared.candidate))
        rows = pq.read_table(dataset.pairs_path(task, split)).to_pylist()
        return {
            (anchors[row["anchor"]], candidates[row["candidate"]]): {k: row[k] for k in ("count", "weight", "grade")}
            for row in rows
        }

    def column(self, dataset: PreparedDataset, entity: str, column: str) -> list[Any]:
        return pq.read_table(dataset.entity_path(entity))[column].to_pylist()

    def bags(self, dataset: PreparedDataset, entity: str, feature: str, table: str) -> dict[str, list[str]]:
        """Entity id -> values of its bag (None for the out-of-vocabulary row)."""
        rows = pq.read_table(dataset.vocabulary_path(table))
        value_of = dict(zip(rows["row"].to_pylist(), rows["value"].to_pylist(), strict=True))
        ids, bags = self.column(dataset, entity, "id"), self.column(dataset, entity, feature)
        return {i: [value_of.get(row) for row in bag] for i, bag in zip(ids, bags, strict=True)}


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    """Five items a..e, and train pairs (a, b) and (b, c), a valid and a test pair."""
    (tmp_path / "raw").mkdir()
    shop = Workshop(tmp_path / "raw", tmp_path / "out")
    shop.write("items.parquet", {"id": list("abcde")})
    shop.write("pairs.parquet", {"a": list("abab"), "c": list("bcca"), "t": [1, 2, 150, 250]})
    return shop


@pytest.fixture
def group_rule() -> Callable[..., GroupPairs]:
    """A group rule over baskets.parquet with columns g, i, t (and o, an order)."""

    def make(**changes: Any) -> GroupPairs:
        return GroupPairs(
            **{"kind": "groups", "path": "baskets.parquet", "group": ("g",), "item": "i", "time": "t"} | changes
        )

    return make


@pytest.fixture
def text_schema(shop: Workshop) -> Callable[..., Schema]:
    """Items with one text feature `title` in the table `tokens`, and the pairs of `shop`."""

    def make(table: Table | None = None, **changes: Any) -> Schema:
        feature = TextFeature(**{"kind": "text", "columns": ("title",), "table": "tokens"} | changes)
        return shop.schema(tables={"tokens": table or Table()}, entities=shop.items({"title": feature}))

    return make


@pytest.fixture
def by_group() -> GroupSplit:
    return GroupSplit(kind="group", column=("g",), valid_share=0.2, test_share=0.2)
