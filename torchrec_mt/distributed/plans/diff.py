"""How two plans differ: what was supposed, what each takes, and every table that lies otherwise."""

from dataclasses import asdict, dataclass
from typing import Any

from torchrec_mt.distributed.plans.plan import Plan, PlannedTable


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One quantity or table, and what it is in either plan; None where a plan lacks it."""

    what: str
    first: Any
    second: Any


@dataclass(frozen=True, kw_only=True)
class PlanDiff:
    """What differs. Equal plans have none of it."""

    supposed: list[Difference]
    takes: list[Difference]
    tables: list[Difference]

    @property
    def is_empty(self) -> bool:
        """Whether the plans are the same."""
        return not (self.supposed or self.takes or self.tables)

    def to_json(self) -> dict[str, Any]:
        """As `plan diff --json` prints it."""
        return asdict(self)


def diff(first: Plan, second: Plan) -> PlanDiff:
    """Compares two plans."""
    supposed: dict[str, list[Any]] = {
        "cluster": [plan.label for plan in (first, second)],
        "batch rows a rank": [plan.batch_rows for plan in (first, second)],
        "reserve": [plan.reserve for plan in (first, second)],
        "optimizer": [plan.optimizer for plan in (first, second)],
        "torchrec": [plan.torchrec for plan in (first, second)],
    }
    for key in first.cluster.keys() | second.cluster.keys():
        if key not in ("hosts", "ranks_per_host", "name", "source"):
            supposed[f"cluster {key}"] = [plan.cluster.get(key) for plan in (first, second)]
    takes: dict[str, list[Any]] = {
        "busiest rank, ms": [plan.busiest.ms for plan in (first, second)],
        "over the mean": [plan.imbalance for plan in (first, second)],
        "fullest rank, bytes": [max(rank.used for rank in plan.ranks) for plan in (first, second)],
        "host memory, bytes": [max(rank.host for rank in plan.ranks) for plan in (first, second)],
        "all tables, bytes": [plan.table_bytes for plan in (first, second)],
    }
    names = dict.fromkeys(table.name for plan in (first, second) for table in plan.tables)
    tables: dict[str, list[Any]] = {name: [_lies(plan, name) for plan in (first, second)] for name in names}
    return PlanDiff(supposed=_unlike(supposed), takes=_unlike(takes), tables=_unlike(tables))


def _unlike(pairs: dict[str, list[Any]]) -> list[Difference]:
    return [Difference(what=what, first=a, second=b) for what, (a, b) in sorted(pairs.items()) if a != b]


def _lies(plan: Plan, name: str) -> dict[str, Any] | None:
    """What makes a table's place, `ranks` in the order of its shards; None where the plan lacks it."""
    found: list[PlannedTable] = [table for table in plan.tables if table.name == name]
    if not found:
        return None
    table = found[0]
    return {
        "rows": table.rows,
        "dim": table.dim,
        "dtype": table.dtype,
        "sharding_type": table.sharding_type,
        "kernel": table.kernel,
        "ranks": [shard[0] for shard in table.shards],
        "bytes": int(table.total("weights") + table.total("sums") + table.total("host")),
    }
