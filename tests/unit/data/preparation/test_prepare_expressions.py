"""Every expression of preparation must also be one that Ibis can say to Spark."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ibis.expr.types as ir
import pytest
from ibis.backends.sql.compilers import pyspark

from tests.raw_shop import CLICKS, PRODUCTS, by_group, given, groups, make_schema, run, with_features
from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.data.preparation.sources import Source
from torchrec_mt.errors import UserError
from torchrec_mt.schema import CategoriesFeature, CategoryFeature, GroupSplit, NumberFeature, Schema, Task, Truth


@pytest.fixture
def told_to_spark(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Compiles for Spark whatever the engine is asked for."""
    statements: list[str] = []
    compiler = pyspark.PySparkCompiler()
    monkeypatch.setattr(pyspark, "options", SimpleNamespace(pyspark=SimpleNamespace(treat_nan_as_null=False)))
    for name in ("cache", "arrow", "batches"):
        asked = getattr(Engine, name)

        def also_spark(self: Engine, table: ir.Table, *more: Source, asked=asked):
            statements.append(compiler.to_sqlglot(table).sql("databricks"))
            return asked(self, table, *more)

        monkeypatch.setattr(Engine, name, also_spark)
    return statements


def everything() -> Schema:
    features = with_features(
        kind=CategoryFeature(kind="category", column="kind", table="kind"),
        words=CategoriesFeature(kind="categories", column="title", table="kind", separator=" "),
        price=NumberFeature(kind="number", column="price"),
    )
    rule = groups(direction="forward", order="line", min_lift=0.1, different="kind", minus=("together",))
    truth = Truth(path="truth.parquet", anchor="query", candidate="sku", score="score")
    search = replace(features.tasks["search"], pairs=given(weight="w", grade="w", min_grade=0.0), truth=truth)
    after = Task(anchor="product", candidate="product", pairs=rule, trained_as="together")
    roles = given(label="label", roles={"x": 1.0, "y": "negative", "z": "ignore"}, negatives="shown")
    labelled = Task(anchor="query", candidate="product", pairs=roles)
    return replace(features, tasks={**features.tasks, "search": search, "after": after, "labelled": labelled})


def test_all_expressions_compile_for_spark(tmp_path: Path, told_to_spark: list[str]) -> None:
    tables = {
        "clicks": {**CLICKS, "w": [1.0] * 8, "label": list("xyzxyzxx"), "shown": [["c"]] * 8},
        "truth": {"query": ["q1", "q1"], "sku": ["a", "b"], "score": [0.5, 2.0]},
    }
    dataset = run(tmp_path / "time", everything(), permutation_check=True, **tables)
    assert dataset.manifest.tasks["after"].trained_as == "together"
    assert dataset.manifest.tasks["labelled"].notes == {"named_negatives": 2, "ignored_pairs": 1}
    grouped = by_group(everything(), GroupSplit(kind="group", column=("time",)))
    run(tmp_path / "group", grouped, **tables)
    assert len(told_to_spark) > 60


@pytest.mark.parametrize(
    ("skus", "score", "said"),
    [(["a", "b"], float("nan"), "'score'.*'q1'"), (["a", None], 1.0, "1 rows .*null 'query' or 'sku'")],
)
def test_a_truth_with_holes(tmp_path: Path, skus: list[str | None], score: float, said: str) -> None:
    truth = Truth(path="truth.parquet", anchor="query", candidate="sku", score="score")
    schema = make_schema()
    schema = replace(schema, tasks={**schema.tasks, "search": replace(schema.tasks["search"], truth=truth)})
    with pytest.raises(UserError, match=rf"tasks\.search\.truth\.path.*{said}"):
        run(tmp_path, schema, truth={"query": ["q1", "q1"], "sku": skus, "score": [0.5, score]})


def test_separator_values_lose_their_blanks(tmp_path: Path) -> None:
    feature = CategoriesFeature(kind="categories", column="kind", table="kind", separator="|")
    products = {**PRODUCTS, "kind": ["x | y", "y|x", "x||", None, ""]}
    dataset = run(tmp_path, with_features(kinds=feature), products=products)
    assert dataset.manifest.tables["kind"] == 3
    assert dataset.manifest.entities["product"].features["kinds"].mean_bag == 1.0
