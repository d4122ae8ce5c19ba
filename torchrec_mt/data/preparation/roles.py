"""What a row of a given source says of its pair: positive, ignored, or that the candidate is a negative of the anchor.

Roles come from labels (`GivenPairs.roles`); without labels every row is positive. Named negatives come from labels and
from lists of ids shown and not chosen (`GivenPairs.negatives`). All of it is of the training part alone.
"""

from dataclasses import dataclass

import ibis
import ibis.expr.types as ir

from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.schema import GivenPairs, Task

POSITIVE, NEGATIVE, IGNORE = "positive", "negative", "ignore"


@dataclass(frozen=True)
class Marked:
    """Pairs of the training part that are not trained as positives: distinct (anchor, candidate) keys, cached.

    Args:
        ignored: neither positive nor a negative; None where no label says so.
        negatives: named negatives that are neither positive nor ignored; None where the task names none.
        unknown: entries of `GivenPairs.negatives` that name no candidate.
    """

    ignored: ir.Table | None = None
    negatives: ir.Table | None = None
    unknown: int = 0


def role_columns(raw: ir.Table, given: GivenPairs) -> dict[str, ir.Column]:
    """Columns grade (float64; 0 unless positive), role (null: a label without one), label where there is one."""
    if given.label is None:
        grade = ibis.literal(1.0, "float64") if given.grade is None else raw[given.grade].cast("float64")
        return {"grade": grade, "role": ibis.literal(POSITIVE)}
    label = raw[given.label].cast("string")
    grades = {name: float(role) for name, role in given.roles.items() if not isinstance(role, str)}
    words = {name: role if isinstance(role, str) else POSITIVE for name, role in given.roles.items()}
    return {
        "label": label,
        "grade": ibis.cases(
            *((label == name, ibis.literal(grade, "float64")) for name, grade in grades.items()), else_=0.0
        ),
        "role": ibis.cases(*((label == name, word) for name, word in words.items()), else_=ibis.null("string")),
    }


def mark(
    engine: Engine, divided: ir.Table, positives: ir.Table, given: GivenPairs, task: Task, candidates: ir.Table
) -> Marked:
    """Ignored pairs and named negatives of one trained task.

    Args:
        divided: usable rows with part, anchor, candidate, role and, where `negatives` names a column, `shown` (a list).
        positives: the pairs of the task, with part, anchor, candidate.
        candidates: the candidate entity, with id and key.
    """
    train = divided.filter(divided.part == 0)
    known = positives.filter(positives.part == 0).select("anchor", "candidate")
    ignored = None
    if IGNORE in given.roles.values():
        rows = train.filter(train.role == IGNORE).select("anchor", "candidate").distinct()
        ignored = engine.cache(rows.anti_join(known, ["anchor", "candidate"]))
        known = known.union(ignored, distinct=False)
    if not given.names_negatives:
        return Marked(ignored)
    named = [train.filter(train.role == NEGATIVE).select("anchor", "candidate")]
    shown, unknown = None, 0
    if given.negatives is not None:
        shown = engine.cache(_shown(train, candidates))
        unknown = engine.one(shown.filter(shown.candidate.isnull()).agg(n=shown.n.sum()))["n"] or 0
        named.append(shown.filter(shown.candidate.notnull()).select("anchor", "candidate"))
    every = ibis.union(*named, distinct=True) if len(named) > 1 else named[0].distinct()
    if task.anchor == task.candidate:
        every = every.filter(every.anchor != every.candidate)
    negatives = engine.cache(every.anti_join(known, ["anchor", "candidate"]))
    if shown is not None:
        engine.drop(shown)
    return Marked(ignored, negatives, int(unknown))


def _shown(train: ir.Table, candidates: ir.Table) -> ir.Table:
    """Entries of the rows' lists: anchor, id, n (entries), candidate (its key; null: unknown)."""
    entries = train.select("anchor", id="shown").unnest("id")
    counted = entries.filter(entries.id.notnull()).group_by("anchor", "id").agg(n=ibis._.count())
    return counted.left_join(candidates.select("id", candidate="key"), "id").select("anchor", "id", "n", "candidate")
