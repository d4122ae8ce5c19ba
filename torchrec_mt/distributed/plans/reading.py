"""Plans out of files: what `plan --output`, a run or a person's hand wrote, checked before anything is made of it."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from torchrec_mt.distributed.plans.choices import Cost
from torchrec_mt.distributed.plans.clusters import cluster_of
from torchrec_mt.distributed.plans.plan import FORMAT, Plan, PlannedTable
from torchrec_mt.errors import UserError, first_line

_REMEDY = "give what `plan --output` or a run wrote"
_COST = {field.name for field in fields(Cost)}


def read_plan(path: str) -> Plan:
    """The plan of a file, or of a run folder.

    Raises:
        UserError: no such file, one that cannot be read, or no plan in it.
    """
    file = Path(path) / "plan.json" if Path(path).is_dir() else Path(path)
    try:
        return plan_from_json(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError:
        raise UserError(f"no plan '{file}': give a file that `plan --output` wrote, or a run folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{file}' cannot be read ({error}): {_REMEDY}") from None


def plan_from_json(text: str, where: str) -> Plan:
    """The plan of a file.

    Raises:
        UserError: no plan, one of another format, or one that contradicts itself.
    """
    try:
        raw = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if not isinstance(raw, dict):
            raise ValueError(f"a {type(raw).__name__} in place of keys")
        if raw.get("format") != FORMAT:
            raise UserError(f"'{where}' is a plan of format {raw.get('format')!r}, this version reads {FORMAT}")
        plan = _adapter().validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"'{where}' holds no plan ({key}: {first['msg']}): {_REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{where}' holds no plan ({first_line(error)}): {_REMEDY}") from None
    wrong = next(_wrong(plan, where), None)
    if wrong:
        raise UserError(f"'{where}': {wrong}: {_REMEDY}")
    return plan


@cache
def _adapter() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} in place of a number")
    return float(text)


def _wrong(plan: Plan, where: str) -> Iterator[str]:
    """What a plan says that cannot be."""
    world_size = cluster_of({"name": "of the plan", **plan.cluster}, f"'{where}', cluster").world_size
    if [rank.rank for rank in plan.ranks] != list(range(world_size)):
        yield f"`ranks` are not 0 to {world_size - 1}, as the cluster has them"
    names = Counter(table.name for table in plan.tables)
    yield from (f"table '{name}' is there {times} times" for name, times in names.items() if times > 1)
    for table in plan.tables:
        yield from _wrong_shards(table, world_size)


def _wrong_shards(table: PlannedTable, world_size: int) -> Iterator[str]:
    for cost in table.costs:
        if cost.keys() != _COST:
            yield f"a cost of table '{table.name}' has other keys than {', '.join(sorted(_COST))}"
    for shard in table.shards:
        if len(shard) != 6:
            yield f"shard {shard} of table '{table.name}' is not [rank, row, column, rows, columns, cost]"
        elif not 0 <= shard[0] < world_size:
            yield f"table '{table.name}' has a shard on rank {shard[0]}, and there are {world_size} ranks"
        elif not 0 <= shard[5] < len(table.costs):
            yield f"table '{table.name}' has a shard of cost {shard[5]}, and {len(table.costs)} cost(s)"
