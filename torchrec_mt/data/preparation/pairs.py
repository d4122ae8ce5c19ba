"""Pairs of every task, as keys: part, anchor, candidate, count, weight (summed over repeats), grade (all float64).

Second half of making pairs: events are given their part first, then pairs are made within each part.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import ibis
import ibis.expr.types as ir

from torchrec_mt.data.preparation.check import minus_order
from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.data.preparation.entities import EntityTable
from torchrec_mt.data.preparation.events import load_events
from torchrec_mt.data.preparation.groups import (
    count_too_large,
    derive_pairs,
    make_members,
    permute_items,
    usable,
)
from torchrec_mt.data.preparation.roles import POSITIVE, Marked, mark
from torchrec_mt.data.preparation.sources import Source
from torchrec_mt.data.preparation.split import TimeCut, find_cut, with_part
from torchrec_mt.errors import UserError
from torchrec_mt.schema import GivenPairs, GroupPairs, Schema, Task

Step = Callable[[], None]


@dataclass(frozen=True)
class TaskPairs:
    """Positive pairs of one task, raw rows left out by reason, notes for the manifest, and pairs marked as others."""

    table: ir.Table
    rejected: dict[str, int]
    notes: dict[str, float | str]
    marked: Marked = field(default_factory=Marked)


def make_pairs(
    engine: Engine,
    schema: Schema,
    entities: Mapping[str, EntityTable],
    sources: Mapping[str, Source],
    *,
    permutation_check: bool,
    step: Step,
) -> tuple[dict[str, TaskPairs], TimeCut | None]:
    """Pairs of all tasks, in declared order; `step` is called when events are read and when pairs are made.

    Raises:
        UserError: bad sources (see `load_events`), or a trained task without training pairs.
    """
    events = {}
    for name in schema.tasks:
        events[name] = load_events(engine, name, schema, dict(entities), sources[f"tasks.{name}.pairs.path"])
        step()
    cut = find_cut(engine, schema, events)
    made: dict[str, TaskPairs] = {}
    for name in minus_order(schema):
        task = schema.tasks[name]
        divided = with_part(events[name].table, schema, cut)
        match task.pairs:
            case GivenPairs():
                pairs = _given(engine, divided, events[name].rejected, task, entities[task.candidate].table)
            case GroupPairs() as rule:
                pairs = _derived(engine, divided, rule, entities[task.anchor].table, permutation_check)
                pairs = TaskPairs(pairs.table, events[name].rejected | pairs.rejected, pairs.notes)
                pairs = _minus(engine, pairs, rule, made)
        pairs.notes.update(events[name].notes)
        if task.trained_as is None:
            _check_training(engine, name, task, pairs)
        made[name] = pairs
        step()
    return {name: made[name] for name in schema.tasks}, cut


def _check_training(engine: Engine, name: str, task: Task, pairs: TaskPairs) -> None:
    train = _in_part(pairs.table, 0)
    found = engine.one(train.agg(n=train.count(), weight=train.weight.max()))
    if not found["n"]:
        raise UserError(
            f"tasks.{name}.pairs: no training pairs are left (rows left out: {pairs.rejected or 'none'}); "
            f"look at the split, and at min_grade, roles, min_support, min_lift, same, different and minus"
        )
    if isinstance(task.pairs, GivenPairs) and not found["weight"] > 0:
        raise UserError(
            f"tasks.{name}.pairs.weight: all {found['n']} training pairs have weight 0 by '{task.pairs.weight}' "
            "(a weight below 5e-13 counts as 0), so nothing would be learned; give weights about 1"
        )


def _given(engine: Engine, divided: ir.Table, rejected: dict[str, int], task: Task, candidates: ir.Table) -> TaskPairs:
    """Pairs of a given source. A grade of 0 judges a pair irrelevant: that can be evaluated, but not trained."""
    assert isinstance(task.pairs, GivenPairs)
    positive = divided.filter(divided.role == POSITIVE)
    if task.pairs.min_grade <= 0:
        irrelevant = engine.one(_in_part(positive, 0).filter(ibis._.grade <= 0).agg(n=ibis._.count()))["n"]
        rejected = rejected | ({"grade 0 in training": irrelevant} if irrelevant else {})
        positive = positive.filter((positive.part > 0) | (positive.grade > 0))
    positives = engine.cache(_counted(positive))
    if task.trained_as is not None:
        return TaskPairs(positives, rejected, {})
    marked = mark(engine, divided, positives, task.pairs, task, candidates)
    return TaskPairs(positives, rejected, {"unknown_in_negatives": marked.unknown} if marked.unknown else {}, marked)


def _counted(rows: ir.Table) -> ir.Table:
    """Repeats of a pair within a part become one row. Decimals: their sum does not depend on the order of rows."""
    grouped = rows.group_by("part", "anchor", "candidate")
    return grouped.agg(
        count=rows.count().cast("float64"),
        weight=rows.weight.cast("decimal(28, 12)").sum().cast("float64"),
        grade=rows.grade.max(),
    )


def _derived(engine: Engine, divided: ir.Table, rule: GroupPairs, entity: ir.Table, check: bool) -> TaskPairs:
    members = make_members(engine, divided, rule)
    too_large = count_too_large(engine, members, rule)
    small = usable(members, rule)
    found = derive_pairs(engine, small, rule, entity)
    notes: dict[str, float | str] = {}
    if check:
        mixed = permute_items(engine, _in_part(small, 0))
        permuted = derive_pairs(engine, usable(mixed, rule), rule, entity)
        notes["real_pairs"] = engine.one(_in_part(found, 0).agg(n=ibis._.count()))["n"]
        notes["permuted_pairs"] = engine.one(permuted.agg(n=permuted.count()))["n"]
        engine.drop(mixed)
        engine.drop(permuted)
    engine.drop(members)
    one = ibis.literal(1.0, "float64")
    return TaskPairs(found.mutate(weight=one, grade=one), {"group too large": too_large} if too_large else {}, notes)


def _minus(engine: Engine, pairs: TaskPairs, rule: GroupPairs, made: Mapping[str, TaskPairs]) -> TaskPairs:
    """Takes away pairs of other tasks, either direction, found in this part or an earlier one."""
    if not rule.minus:
        return pairs
    positive = [made[name].table.filter(made[name].table.grade > 0) for name in rule.minus]
    there = [table.select("part", "anchor", "candidate") for table in positive]
    back = [table.select("part", anchor="candidate", candidate="anchor") for table in there]
    other = ibis.union(*there, *back, distinct=False)
    first = other.group_by(other_anchor="anchor", other_candidate="candidate").agg(first=other.part.min())
    table = pairs.table
    matches = [
        table.anchor == first.other_anchor,
        table.candidate == first.other_candidate,
        table.part >= first["first"],
    ]
    left = engine.cache(table.anti_join(first, matches))
    before, after = (engine.one(t.agg(n=t.count()))["n"] for t in (table, left))
    return TaskPairs(
        left, pairs.rejected | ({"pair of a task in minus": before - after} if before > after else {}), pairs.notes
    )


def _in_part(table: ir.Table, part: int) -> ir.Table:
    return table.filter(table.part == part)
