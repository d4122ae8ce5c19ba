"""Rows of a pair source that cannot be used: how many a dataset may have, and what is said of one that has more.

What names no known entity, or has nothing to split or group by, is mostly a mistake in a key and counts towards
`max_rejected_share`. The other reasons are rules of the declaration or rows that name no entity at all.
"""

from collections.abc import Mapping

import ibis.expr.types as ir

from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.data.preparation.entities import EntityTable
from torchrec_mt.data.preparation.sources import Source
from torchrec_mt.errors import UserError

NO_TIME, NO_GROUP, NO_SPLIT_GROUP = "no time", "no group", "no split group"
_MISSING = (NO_TIME, NO_GROUP, NO_SPLIT_GROUP)
_UNKNOWN = "unknown "


def check_rejected(
    engine: Engine,
    keyed: ir.Table,
    counts: Mapping[str, int],
    share: float,
    source: Source,
    ends: Mapping[str, tuple[str, EntityTable]],
    columns: Mapping[str, str],
) -> None:
    """Refuses a source of which too many rows cannot be used.

    Args:
        keyed: all rows, with `reason` (empty: usable) and per end its id and `END_key`.
        counts: rows by reason.
        share: `max_rejected_share`.
        ends: name of an end -> its raw column and entity.
        columns: reason in NO_... -> the columns that are null there, as text.

    Raises:
        UserError: says what is wrong with which column, how many rows, and what to do.
    """
    rows = sum(counts.values())
    rejected = {reason: n for reason, n in counts.items() if reason in _MISSING or reason.startswith(_UNKNOWN)}
    if sum(rejected.values()) <= share * rows:
        return
    unknown = [reason for reason in rejected if reason not in _MISSING]
    parts = [_unknown(engine, keyed, reason, rejected[reason], *ends[reason.removeprefix(_UNKNOWN)])
             for reason in unknown]  # fmt: skip
    parts += [f"{n} have {reason} ({columns[reason]} is null)" for reason, n in rejected.items() if reason in _MISSING]
    remedies = ["add the entities"] if unknown else []
    remedies += ["fill the column or drop these rows"] if len(unknown) < len(rejected) else []
    raise UserError(
        f"{source.key}: of {rows} rows of '{source.path}' {'; '.join(parts)}: more than max_rejected_share = {share} "
        f"allows; {', '.join(remedies)} or raise the share"
    )


def _unknown(engine: Engine, keyed: ir.Table, reason: str, count: int, column: str, entity: EntityTable) -> str:
    end = reason.removeprefix(_UNKNOWN)
    shown = _examples(engine, keyed.filter(keyed.reason == reason).select(id=keyed[end]), 3)
    found = engine.one(keyed.agg(known=keyed[f"{end}_key"].count(), given=keyed[end].count()))
    if found["known"] > 0.1 * found["given"]:
        return f"{count} name an unknown entity '{entity.name}' in column '{column}' ({reason} {shown})"
    values = "none" if not found["known"] else f"only {found['known']}"
    theirs = _examples(engine, entity.table.select("id"), 2)
    return (
        f"{values} has an id of entity '{entity.name}' in column '{column}' (which holds {shown}; its ids are as "
        f"{theirs}): another column, another type, or another case?"
    )


def _examples(engine: Engine, ids: ir.Table, count: int) -> str:
    first = ids.distinct().order_by("id").limit(count)
    return ", ".join(f"'{value}'" for value in engine.arrow(first)["id"].to_pylist())
