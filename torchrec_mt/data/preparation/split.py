"""Which part of the data an event belongs to: train, valid or test, by time or by a hash of its group."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import ibis
import ibis.expr.types as ir

from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.data.preparation.events import Events
from torchrec_mt.errors import UserError
from torchrec_mt.schema import GroupSplit, Schema, TimeSplit, split_shares

Moment = datetime | float | str


@dataclass(frozen=True)
class TimeCut:
    """Validation starts at `valid_from`, the test at `test_from`; None: never."""

    valid_from: Moment | None
    test_from: Moment | None


def find_cut(engine: Engine, schema: Schema, events: Mapping[str, Events]) -> TimeCut | None:
    """The moments of a split by time, given or as quantiles over the events of all tasks (a source counts once).

    Raises:
        UserError: tasks whose times cannot be compared, or given moments of another type.
    """
    if not isinstance(schema.split, TimeSplit):
        return None
    events = {name: task for name, task in events.items() if "moment" in task.table.columns}
    families = {name: _family(task.table.moment) for name, task in events.items()}
    if len(set(families.values())) > 1:
        shown = ", ".join(f"'{name}': {family}" for name, family in families.items())
        raise UserError(f"split: the time columns of the tasks cannot be compared ({shown}); store them as one type")
    if schema.split.valid_from is not None and schema.split.test_from is not None:
        family = next(iter(families.values()))
        return TimeCut(
            _parse("split.valid_from", schema.split.valid_from, family),
            _parse("split.test_from", schema.split.test_from, family),
        )
    sources = {(schema.tasks[name].pairs.path, schema.tasks[name].pairs.time): name for name in reversed(list(events))}
    moments = [events[name].table.select("moment") for name in sorted(sources.values())]
    if not all(table.moment.type() == moments[0].moment.type() for table in moments):
        moments = [table.select(moment=table.moment.cast("float64")) for table in moments]
    every = ibis.union(*moments, distinct=False) if len(moments) > 1 else moments[0]
    counts = every.group_by("moment").agg(n=every.count())
    running = counts.mutate(until=ibis._.n.sum().over(order_by=ibis._.moment, rows=(None, 0)))
    running = engine.cache(running)
    total = engine.one(running.agg(n=running.n.sum()))["n"]
    if not total:
        raise UserError("split: no task has an event with a time, so there is nothing to split")
    valid_share, test_share = split_shares(schema.split)
    train_share = 1 - valid_share - test_share
    found = [_quantile(engine, running, total, share) for share in (train_share, train_share + valid_share)]
    engine.drop(running)
    return TimeCut(*found)


def _quantile(engine: Engine, running: ir.Table, total: int, share: float) -> Moment | None:
    """The moment of event number floor(share * total) in order of time: about `share` of events lie before it."""
    before = math.floor(share * total + 1e-9)
    if before >= total:
        return None
    later = running.filter(running.until > before)
    return engine.one(later.agg(moment=later.moment.min()))["moment"]


def _family(column: ir.Column) -> str:
    kind = column.type()
    return "time stamp" if kind.is_temporal() else "number" if kind.is_numeric() else "string"


def _parse(key: str, value: str | float, family: str) -> Moment:
    if family == "number":
        if isinstance(value, str):
            raise UserError(f"{key}: {value!r} is a string, but the time columns hold numbers")
        return value
    if not isinstance(value, str):
        raise UserError(f"{key}: {value!r} is a number, but the time columns hold {family}s; give an ISO string")
    if family == "string":
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise UserError(
            f"{key}: {value!r} is no ISO date or time (as in '2024-05-31' or '2024-05-31T12:00:00')"
        ) from None
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def with_part(table: ir.Table, schema: Schema, cut: TimeCut | None) -> ir.Table:
    """Replaces the split column by `part`: 0 train, 1 valid, 2 test; without such a column every row is tested."""
    if not {"moment", "hash"} & set(table.columns):
        return table.mutate(part=ibis.literal(2, "int8"))
    if cut is not None:
        before_valid, before_test = (_before(table.moment, moment) for moment in (cut.valid_from, cut.test_from))
        return table.mutate(part=ibis.cases((before_valid, 0), (before_test, 1), else_=2)).drop("moment")
    assert isinstance(schema.split, GroupSplit)
    head = table.hash.substr(0, 8)
    test = _threshold(schema.split.test_share)
    valid = _threshold(schema.split.test_share + schema.split.valid_share)
    return table.mutate(part=ibis.cases((head < test, 2), (head < valid, 1), else_=0)).drop("hash")


def _before(column: ir.Column, moment: Moment | None) -> ir.BooleanValue:
    if moment is None:
        return ibis.literal(True)
    return column < (ibis.literal(moment, "timestamp") if isinstance(moment, datetime) else ibis.literal(moment))


def _threshold(share: float) -> str:
    """Eight hex digits; a share of hashes starts with smaller ones."""
    return format(round(share * 2**32), "08x")


def describe_split(schema: Schema, cut: TimeCut | None) -> dict[str, float | str]:
    """What the manifest says about the split."""
    match schema.split:
        case TimeSplit():
            assert cut is not None
            shown = [_shown(moment) for moment in (cut.valid_from, cut.test_from)]
            return {"kind": "time", "valid_from": shown[0], "test_from": shown[1]}
        case GroupSplit() as split:
            shares: dict[str, float | str] = {"valid_share": split.valid_share, "test_share": split.test_share}
            return {"kind": "group", "column": ", ".join(split.column), "salt": split.salt} | shares


def _shown(moment: Moment | None) -> float | str:
    if moment is None:
        return "never"
    return moment.isoformat() if isinstance(moment, datetime) else moment
