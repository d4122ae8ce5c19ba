"""Entities: read, checked and keyed.

A key is the rank of an id in ascending order; pairs travel as keys until the final row order (most frequent in training
first) is known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from torchrec_mt.data.preparation.columns import Want, parquet_files
from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.data.preparation.sources import Source
from torchrec_mt.errors import UserError
from torchrec_mt.schema import (
    CategoriesFeature,
    CategoryFeature,
    Entity,
    GroupPairs,
    NumberFeature,
    Schema,
    TextFeature,
    VectorFeature,
)


@dataclass(frozen=True)
class EntityTable:
    """One entity as read: `table` has `id`, `key`, `f:FEATURE` per feature and `c:COLUMN` per compared column."""

    name: str
    table: ir.Table
    count: int


def compared_columns(schema: Schema, entity: str) -> list[str]:
    """Columns that group pairs of this entity compare (`same`, `different`)."""
    rules = [
        task.pairs for task in schema.tasks.values() if task.anchor == entity and isinstance(task.pairs, GroupPairs)
    ]
    return sorted({column for rule in rules for column in (rule.same, rule.different) if column is not None})


def wanted_columns(entity: Entity, compared: Iterable[str]) -> dict[str, Want]:
    """Raw columns of an entity and what each is wanted as."""
    wanted: dict[str, Want] = {entity.id: "value"}
    for feature in entity.features.values():
        match feature:
            case CategoryFeature():
                wanted.setdefault(feature.column, "value")
            case CategoriesFeature():
                wanted[feature.column] = "list" if feature.separator is None else "text"
            case TextFeature():
                wanted.update(dict.fromkeys(feature.columns, "text"))
            case NumberFeature():
                wanted[feature.column] = "number"
            case VectorFeature():
                wanted[feature.column] = "vector"
    for column in compared:
        wanted.setdefault(column, "value")
    return wanted


def load_entity(engine: Engine, name: str, entity: Entity, source: Source, compared: Sequence[str]) -> EntityTable:
    """Reads one entity.

    Raises:
        UserError: missing or mistyped column, empty table, null or repeated ids.
    """
    raw = engine.read(parquet_files(source, wanted_columns(entity, compared), engine.scratch), source)
    columns = {"id": raw[entity.id].cast("string")}
    for feature_name, feature in entity.features.items():
        match feature:
            case CategoryFeature():
                columns[f"f:{feature_name}"] = raw[feature.column].cast("string")
            case CategoriesFeature(separator=None):
                # Before anything else: a list without any entry in all the table is of no type.
                columns[f"f:{feature_name}"] = raw[feature.column].cast("array<string>")
            case CategoriesFeature() | VectorFeature():
                columns[f"f:{feature_name}"] = raw[feature.column]
            case NumberFeature():
                columns[f"f:{feature_name}"] = raw[feature.column].cast("float64")
            case TextFeature():
                columns[f"f:{feature_name}"] = _joined([raw[column].cast("string") for column in feature.columns])
    columns |= {f"c:{column}": raw[column].cast("string") for column in compared}
    table = engine.cache(raw.select(**columns).mutate(key=ibis.row_number().over(order_by=ibis._["id"])), source)
    return EntityTable(name, table, _check_ids(engine, table, entity, source))


def _joined(columns: list[ir.StringColumn]) -> ir.StringColumn:
    """Columns joined by a blank; null and empty ones leave no blank behind."""
    text = columns[0].fill_null("")
    for column in columns[1:]:
        more = column.fill_null("")
        text = ibis.cases((text == "", more), (more == "", text), else_=text + " " + more)
    return text


def _check_ids(engine: Engine, table: ir.Table, entity: Entity, source: Source) -> int:
    counts = engine.one(table.agg(rows=table.count(), nulls=table.id.isnull().sum(), distinct=table.id.nunique()))
    rows, nulls = counts["rows"], counts["nulls"] or 0
    if rows == 0:
        raise UserError(f"{source.key}: '{source.path}' has no rows; an entity needs at least one")
    if nulls:
        raise UserError(
            f"{source.key}: {nulls} of {rows} rows of '{source.path}' have a null '{entity.id}'; every row needs an id"
        )
    if counts["distinct"] < rows:
        groups = table.group_by("id").agg(n=table.count())
        repeated = groups.filter(groups.n > 1).order_by("id").limit(3)
        examples = ", ".join(f"'{row['id']}' ({row['n']} times)" for row in engine.arrow(repeated).to_pylist())
        surplus = rows - counts["distinct"]
        raise UserError(
            f"{source.key}: '{entity.id}' of '{source.path}' is not unique: {surplus} surplus rows, as {examples}"
        )
    return rows


def order_rows(engine: Engine, entity: EntityTable, train_pairs: Sequence[ir.Table]) -> ir.Table:
    """Final rows of an entity: columns key, id, row, train_count; most frequent in training first, then by id.

    Args:
        train_pairs: tables with one column `key`, a row for every training pair that holds the entity.
    """
    keys = entity.table.select("key", "id")
    if train_pairs:
        counts = ibis.union(*train_pairs, distinct=False) if len(train_pairs) > 1 else train_pairs[0]
        counts = counts.group_by("key").agg(train_count=counts.count())
        counted = keys.left_join(counts, "key").select("key", "id", train_count=ibis._.train_count.fill_null(0))
    else:
        counted = keys.mutate(train_count=ibis.literal(0, "int64"))
    rank = ibis.row_number().over(order_by=[ibis._.train_count.desc(), ibis._.key])
    return engine.cache(counted.mutate(row=rank))
