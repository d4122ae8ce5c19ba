"""Ranks of a plan that hold and do the same, told once; and the shards of a rank or of a table, as pages show them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchrec_mt.distributed.plans.plan import PARTS, Plan, PlannedTable, RankLoad
from torchrec_mt.reporting.plans import milliseconds, size

EACH = 16
"""Up to so many ranks are told one by one; of more, those that are equal are told together."""
SHOWN = 128
"""Kinds of ranks on a page: those with most to do and the fullest."""


@dataclass(frozen=True)
class Shard:
    """A block of a table, with its `Cost`."""

    table: PlannedTable
    rows: int
    columns: int
    cost: dict[str, float]

    @property
    def held(self) -> float:
        """Bytes of weights and sums, wherever they lie."""
        return self.cost["weights"] + self.cost["sums"] + self.cost["host"]

    @property
    def ms(self) -> float:
        """Milliseconds of a step."""
        return sum(self.cost[part] for part in PARTS)


@dataclass(frozen=True)
class RankKind:
    """Ranks that are alike: what each of them holds, the largest shard first, and does."""

    ranks: list[int]
    load: RankLoad
    shards: list[Shard]

    @property
    def held(self) -> int:
        """Bytes of weights and sums of each rank, wherever they lie."""
        return self.load.weights + self.load.sums + self.load.host

    @property
    def name(self) -> str:
        """Such as `rank 3` or `ranks 0–7`."""
        return f"rank{'s' if len(self.ranks) > 1 else ''} {spans(self.ranks)}"


def rank_kinds(plan: Plan) -> list[RankKind]:
    """All ranks, in order of the first of each kind. Alike: shards of the same tables, sizes and costs."""
    held: list[list[tuple[int, int, int, int]]] = [[] for _ in plan.ranks]
    for number, table in enumerate(plan.tables):
        for rank, _, _, rows, columns, cost in table.shards:
            held[rank].append((number, rows, columns, cost))
    alike: dict[object, list[int]] = {}
    for rank, blocks in enumerate(held):
        alike.setdefault(tuple(sorted(blocks)) if len(plan.ranks) > EACH else rank, []).append(rank)
    return [RankKind(ranks, plan.ranks[ranks[0]], _shards(plan, held[ranks[0]])) for ranks in alike.values()]


def _shards(plan: Plan, blocks: Iterable[tuple[int, int, int, int]]) -> list[Shard]:
    """Shards from table, rows, columns and cost, all but the first as `PlannedTable` has them."""
    shards = [
        Shard(plan.tables[number], rows, columns, plan.tables[number].costs[cost])
        for number, rows, columns, cost in blocks
    ]
    return sorted(shards, key=lambda shard: -shard.held)


def shown_kinds(kinds: Sequence[RankKind]) -> list[RankKind]:
    """Of very many kinds, the fullest and those with most to do, in order of their ranks."""
    fullest = max(kinds, key=lambda kind: kind.load.used)
    chosen = sorted(kinds, key=lambda kind: (kind is not fullest, -kind.load.ms))[:SHOWN]
    return sorted(chosen, key=lambda kind: kind.ranks[0])


def shard_kinds(table: PlannedTable) -> list[tuple[list[int], Shard]]:
    """Shards of a table that are of one size and cost, with the rank of each."""
    alike: dict[tuple[int, int, int], list[int]] = {}
    for rank, _, _, rows, columns, cost in table.shards:
        alike.setdefault((rows, columns, cost), []).append(rank)
    return [(ranks, Shard(table, rows, columns, table.costs[cost])) for (rows, columns, cost), ranks in alike.items()]


def spans(numbers: Iterable[int]) -> str:
    """Such as `0–7, 9`; of more than four runs, the first three and how many numbers there are."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told = [f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    return ", ".join(told) if len(runs) <= 4 else f"{', '.join(told[:3])}, … ({sum(map(len, runs))})"


def shard_words(shard: Shard) -> str:
    """Rows and columns, bytes in short and in full, milliseconds."""
    host = shard.cost["host"]
    on_host = f", {size(host)} of it in the host's memory" if host else ""
    held = f"{size(shard.held)} ({shard.held:,.0f} B){on_host}"
    return f"{shard.rows:,} × {shard.columns:,}, {held}, {milliseconds(shard.ms)} ms"
