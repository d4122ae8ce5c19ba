"""Raw pairs and events: read, ids turned into keys, unusable rows counted by reason. First half of making pairs.

Tables of this step have the columns
    given pairs   anchor, candidate (keys), weight, grade (float64), role (see roles.py), the split column, and where
                  the source names negatives `shown` (a list of ids)
    group events  group_0.. (strings), item (key), place (what orders a group, or nothing), and the split column
where the split column is `moment` (split by time) or `hash` (split by group), or missing: then all rows are tested.
"""

from dataclasses import dataclass, field

import ibis
import ibis.expr.types as ir

from torchrec_mt.data.preparation.columns import Want, parquet_files
from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.data.preparation.entities import EntityTable
from torchrec_mt.data.preparation.rejected import NO_GROUP, NO_SPLIT_GROUP, NO_TIME, check_rejected
from torchrec_mt.data.preparation.roles import role_columns
from torchrec_mt.data.preparation.sources import Source
from torchrec_mt.data.preparation.split_by import split_by
from torchrec_mt.errors import UserError
from torchrec_mt.schema import GivenPairs, GroupPairs, GroupSplit, Schema, Task, TimeSplit


@dataclass(frozen=True)
class Events:
    """Usable rows of one task's pair source, how many rows were left out, by reason, and notes for the manifest."""

    table: ir.Table
    rejected: dict[str, int]
    notes: dict[str, float | str] = field(default_factory=dict)


def load_events(engine: Engine, name: str, schema: Schema, entities: dict[str, EntityTable], source: Source) -> Events:
    """Reads the pair source of one task.

    Raises:
        UserError: missing or mistyped column, bad weights or grades, too many unknown ids.
    """
    task = schema.tasks[name]
    ends = _ends(task)
    by = split_by(task, schema, source)
    split_columns = by.columns
    raw = engine.read(parquet_files(source, _wanted(task, split_columns, schema), engine.scratch), source)
    columns = {end: raw[column].cast("string") for end, (column, _) in ends.items()} | _values(raw, task)
    match schema.split if split_columns else None:
        case TimeSplit():
            columns["moment"] = _moment(raw[split_columns[0]])
        case GroupSplit() as split:
            parts = [ibis.literal(split.salt)] + [raw[column].cast("string") for column in split_columns]
            incomplete = ibis.or_(*(part.isnull() for part in parts[1:]))
            columns["hash"] = incomplete.ifelse(ibis.null("string"), ibis.literal("\x1f").join(parts).hexdigest("md5"))
    plain = raw.select(**columns)
    keyed = plain
    for end, (_, entity) in ends.items():
        keys = entities[entity].table.select(**{f"{end}_id": "id", f"{end}_key": "key"})
        keyed = keyed.left_join(keys, keyed[end] == keys[f"{end}_id"]).drop(f"{end}_id")
    keyed = engine.cache(keyed.mutate(reason=_reason(keyed, task, tuple(ends))), source)
    if isinstance(task.pairs, GivenPairs):
        # On the cached table: DuckDB 2.0 skips Parquet row groups by their statistics, which know no NaN.
        _check_values(engine, keyed, task.pairs, source)
    counts = engine.arrow(keyed.group_by("reason").agg(n=keyed.count()).order_by("reason")).to_pylist()
    found = {row["reason"]: row["n"] for row in counts}
    named = {end: (column, entities[entity]) for end, (column, entity) in ends.items()}
    check_rejected(engine, keyed, found, schema.max_rejected_share, source, named, _null_columns(task, split_columns))
    rejected = {reason: n for reason, n in found.items() if reason != ""}
    spent = ("reason", *ends, *({"label"} & set(keyed.columns)))
    kept = keyed.filter(keyed.reason == "").drop(*spent).rename({end: f"{end}_key" for end in ends})
    note = by.note if split_columns else "none: all pairs are in the test part"
    return Events(kept, rejected, {"split": note} if note else {})


def _ends(task: Task) -> dict[str, tuple[str, str]]:
    """Name of an end -> (raw column, entity)."""
    match task.pairs:
        case GivenPairs() as given:
            return {"anchor": (given.anchor, task.anchor), "candidate": (given.candidate, task.candidate)}
        case GroupPairs() as groups:
            return {"item": (groups.item, task.anchor)}


def _null_columns(task: Task, split_columns: tuple[str, ...]) -> dict[str, str]:
    """Reason -> the columns that are null in such rows, for messages."""
    group = task.pairs.group if isinstance(task.pairs, GroupPairs) else ()
    columns = {NO_TIME: split_columns, NO_SPLIT_GROUP: split_columns, NO_GROUP: group}
    return {reason: "column " + " or ".join(f"'{name}'" for name in names) for reason, names in columns.items()}


def _wanted(task: Task, split_columns: tuple[str, ...], schema: Schema) -> dict[str, Want]:
    wanted: dict[str, Want] = dict.fromkeys(split_columns, "moment" if isinstance(schema.split, TimeSplit) else "group")
    match task.pairs:
        case GivenPairs() as given:
            wanted |= {column: "number" for column in (given.weight, given.grade) if column is not None}
            wanted |= {} if given.label is None else {given.label: "value"}
            wanted |= {} if given.negatives is None else {given.negatives: "ids"}
        case GroupPairs() as groups:
            # A column that also tells the time keeps its own type: groups are compared as strings later.
            wanted |= {column: "group" for column in groups.group if column not in wanted}
            if groups.order is not None:
                wanted[groups.order] = "moment"
    return wanted | {column: "value" for column, _ in _ends(task).values()}


def _values(raw: ir.Table, task: Task) -> dict[str, ir.Column]:
    match task.pairs:
        case GivenPairs() as given:
            one = ibis.literal(1.0, "float64")
            weight = one if given.weight is None else raw[given.weight].cast("float64")
            shown = {} if given.negatives is None else {"shown": raw[given.negatives].cast("array<string>")}
            return {"weight": weight} | role_columns(raw, given) | shown
        case GroupPairs() as groups:
            columns = {f"group_{i}": raw[column].cast("string") for i, column in enumerate(groups.group)}
            place = ibis.literal(0, "int8") if groups.order is None else _moment(raw[groups.order])
            return columns | {"place": place}


def _moment(column: ir.Column) -> ir.Column:
    """A time in one of three families that compare among themselves: time stamps (UTC), numbers, strings."""
    kind = column.type()
    if kind.is_temporal():
        return column.cast("timestamp")
    if kind.is_numeric():
        column = column.cast("int64") if kind.is_integer() else column.cast("float64")
        return column if kind.is_integer() else column.isnan().ifelse(ibis.null("float64"), column)
    return column


def _check_values(engine: Engine, keyed: ir.Table, given: GivenPairs, source: Source) -> None:
    """Weights and grades must be finite and not negative."""
    for name, column in (("weight", given.weight), ("grade", given.grade)):
        if column is None:
            continue
        value = keyed[name]
        bad = keyed.filter(value.isnull() | value.isnan() | value.isinf() | (value < 0) | (value > 1e12))
        row = engine.one(bad.agg(n=bad.count(), anchor=bad.anchor.min()))
        if row["n"]:
            first = bad.filter(bad.anchor == row["anchor"]).order_by("candidate").limit(1)
            shown = engine.arrow(first).to_pylist()
            at = f", as {shown[0][name]} at '{shown[0]['anchor']}', '{shown[0]['candidate']}'" if shown else ""
            raise UserError(
                f"{source.key}: {row['n']} rows of '{source.path}' have a '{column}' that is not a finite number "
                f"from 0 to 1e12{at}; mend or drop these rows"
            )


def _reason(keyed: ir.Table, task: Task, ends: tuple[str, ...]) -> ir.StringValue:
    """Why a row cannot be used; empty if it can."""
    cases = [(keyed[end].isnull(), f"no {end}") for end in ends]
    cases += [(keyed[f"{end}_key"].isnull(), f"unknown {end}") for end in ends]
    match task.pairs:
        case GivenPairs() as given:
            if given.label is not None:
                cases += [(keyed.label.isnull(), "no label"), (keyed.role.isnull(), "label without a role")]
            if given.grade is not None:
                cases.append((keyed.grade < given.min_grade, "grade below min_grade"))
            if task.anchor == task.candidate:
                cases.append((keyed.anchor_key == keyed.candidate_key, "anchor is candidate"))
        case GroupPairs() as groups:
            cases += [(keyed[f"group_{i}"].isnull(), NO_GROUP) for i in range(len(groups.group))]
            if groups.order is not None:
                cases.append((keyed.place.isnull(), "no order"))
    if "moment" in keyed.columns:
        cases.append((keyed.moment.isnull(), NO_TIME))
    elif "hash" in keyed.columns:
        cases.append((keyed.hash.isnull(), NO_SPLIT_GROUP))
    return ibis.cases(*cases, else_="")
