"""A sharding plan as tables for the terminal: its tables, its ranks, and plans side by side."""

from collections.abc import Callable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torchrec_mt.distributed.plans.plan import PARTS, Plan, PlannedTable, RankLoad
from torchrec_mt.reporting.table import plain_table
from torchrec_mt.reporting.trimmed import Trimmed

COST_NOTE = "cost: of the tables' share of a step alone, by the cluster's price_per_hour; towers and losses come on top"
_RANKS = 16
"""Ranks shown one by one; of more, those that matter."""


def plan_tables(plan: Plan) -> RenderableType:
    """The plan: its tables, its ranks, who is busiest and why, and whose estimates these are."""
    return Trimmed(Group(_tables(plan), Text(), _ranks(plan), Text(), *summary(plan)))


def summary(plan: Plan) -> list[Text]:
    """What to remember of a plan, in sentences."""
    busiest, fullest = plan.busiest, max(plan.ranks, key=lambda rank: rank.used)
    bound = f"; no plan of the allowed ways takes less than {plan.bound_ms:.3g} ms" if plan.bound_ms else ""
    lines = [
        f"busiest: rank {busiest.rank}, {busiest.ms:.4g} ms of tables a step, {plan.imbalance:.2f}x the mean{bound}",
        f"  because of {why_busy(plan, busiest)}",
        f"fullest: rank {fullest.rank}, {size(fullest.used)} of {size(fullest.capacity)}, {size(fullest.reserved)} "
        f"reserved, {size(fullest.capacity - fullest.reserved - fullest.used)} free",
        f"tables: {size(plan.table_bytes)} with their sums, all ranks together",
    ]
    return [*map(Text, lines), Text(f"TorchRec {plan.torchrec}: {plan.estimates}", style="dim")]


def why_busy(plan: Plan, rank: RankLoad) -> str:
    """The table and the part of the step that take most of a rank's time."""
    shares = {
        (table.name, part): sum(table.costs[shard[5]][part] for shard in table.shards if shard[0] == rank.rank)
        for table in plan.tables
        for part in PARTS
    }
    (table, part), ms = max(shares.items(), key=lambda item: item[1])
    of_table = sum(value for (name, _), value in shares.items() if name == table)
    if not rank.ms:
        return "nothing"
    return (
        f"table '{table}' ({of_table / rank.ms:.0%} of its time), mostly {part.replace('_', ' ')} ({ms / rank.ms:.0%})"
    )


def _tables(plan: Plan) -> Table:
    table = plain_table(f"{plan.model} on {plan.label}, {plan.batch_rows:,} rows a batch and rank", "table", gap=1)
    for name in ("rows", "dim", "way", "ranks", "memory", "buffers", "ms"):
        table.add_column(name, justify="left" if name in ("way", "ranks") else "right", no_wrap=True)
    for one in sorted(plan.tables, key=lambda one: -one.total("weights") - one.total("host")):
        on_host = f" + {size(one.total('host'))} host" if one.total("host") else ""
        table.add_row(
            one.name,
            count(one.rows),
            f"{one.dim}{'' if one.dtype == 'float32' else ' f16'}",
            way(one),
            rank_range(one.ranks, len(plan.ranks)),
            size(one.total("weights") + one.total("sums")) + on_host,
            size(one.total("buffers")),
            f"{sum(one.total(part) for part in PARTS):.3g}",
        )
    return table


def way(table: PlannedTable) -> str:
    """Sharding type and, where it is not the usual, kernel."""
    usual = table.kernel == ("dense" if table.sharding_type == "data_parallel" else "fused")
    return table.sharding_type + ("" if usual else f" ({table.kernel})")


def rank_range(ranks: Sequence[int], world_size: int | None = None) -> str:
    """`all`, `3`, `0-7`, `0, 4, 9` or `12 of 128`; of an unknown number of ranks, never `all`, and `12 ranks`."""
    if len(ranks) == world_size and world_size > 1:
        return "all"
    if len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[0] + len(ranks))):
        return f"{ranks[0]}-{ranks[-1]}"
    return (
        ", ".join(map(str, ranks))
        if len(ranks) <= 4
        else f"{len(ranks)} {f'of {world_size}' if world_size else 'ranks'}"
    )


def _ranks(plan: Plan) -> Table:
    table = plain_table(f"{len(plan.ranks)} rank(s)", "rank", gap=2)
    on_host = any(rank.host for rank in plan.ranks)
    columns = ["used", "free", *(["host"] if on_host else []), "forward", "comms", "backward", "comms ", "ms"]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for rank, note in _shown(plan):
        table.add_row(
            f"{rank.rank}{note}",
            size(rank.used),
            size(rank.capacity - rank.reserved - rank.used),
            *([size(rank.host)] if on_host else []),
            *(f"{ms:.3g}" for ms in (rank.forward_compute + rank.prefetch, rank.forward_comms)),
            *(f"{ms:.3g}" for ms in (rank.backward_compute, rank.backward_comms, rank.ms)),
        )
    return table


def _shown(plan: Plan) -> list[tuple[RankLoad, str]]:
    if len(plan.ranks) <= _RANKS:
        return [(rank, " busiest" if rank is plan.busiest else "") for rank in plan.ranks]
    return [
        (plan.busiest, " busiest"),
        (min(plan.ranks, key=lambda rank: rank.ms), " least busy"),
        (max(plan.ranks, key=lambda rank: rank.used), " fullest"),
        (min(plan.ranks, key=lambda rank: rank.used), " emptiest"),
    ]


def side_by_side(plans: Sequence[tuple[str, Plan | None]], pairs: Sequence[int]) -> RenderableType:
    """Plans as columns: what they take, and how each table lies. None: the tables do not fit.

    Args:
        pairs: examples of a step, all ranks together, of each.
    """
    table = plain_table("side by side", "", gap=2)
    for letter in letters(len(plans)):
        table.add_column(letter, justify="right", no_wrap=True)
    figures, ways = compared(plans, pairs), compared_ways(plans)
    for name, cells in figures.items():
        table.add_row(name, *cells, end_section=name == list(figures)[-1])
    for name, cells in ways.items():
        table.add_row(name, *cells)
    names = (Text(f"{letter}  {name}") for letter, (name, _) in zip(letters(len(plans)), plans, strict=True))
    return Trimmed(Group(table, Text(), *names, Text(COST_NOTE, style="dim")))


def letters(count: int) -> list[str]:
    """Names of plans side by side: A, B, ... Z, A1, ..."""
    return [f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[at % 26]}{at // 26 or ''}" for at in range(count)]


def compared(plans: Sequence[tuple[str, Plan | None]], pairs: Sequence[int]) -> dict[str, list[str]]:
    """What plans take: by the name of a figure, one of each plan; "no fit" where there is none."""
    figures: dict[str, Callable[[Plan, int], str]] = {
        "busiest rank, ms": lambda plan, _: milliseconds(plan.busiest.ms),
        "over the mean": lambda plan, _: f"{plan.imbalance:.2f}",
        "fullest rank": lambda plan, _: size(max(rank.used for rank in plan.ranks)),
        "free there": lambda plan, _: size(min(r.capacity - r.reserved - r.used for r in plan.ranks)),
        "host memory": lambda plan, _: size(max(rank.host for rank in plan.ranks)),
        "all tables": lambda plan, _: size(plan.table_bytes),
        "cost per 10⁶ examples": cost,
    }
    return {
        name: [figure(plan, n) if plan else "no fit" for (_, plan), n in zip(plans, pairs, strict=True)]
        for name, figure in figures.items()
    }


def compared_ways(plans: Sequence[tuple[str, Plan | None]]) -> dict[str, list[str]]:
    """How each table lies in each plan, by its name; nothing where there is no plan."""
    ways = [None if plan is None else {one.name: way(one) for one in plan.tables} for _, plan in plans]
    every = dict.fromkeys(name for found in ways if found for name in found)
    return {name: ["" if found is None else found.get(name, "-") for found in ways] for name in every}


def cost(plan: Plan, pairs: int) -> str:
    """Price of a million examples, as far as tables take time; "-" without a price."""
    price = plan.cluster.get("price_per_hour")
    return "-" if price is None else f"{price * plan.busiest.ms / 3.6e6 * 1e6 / pairs:.3g}"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(count) >= 1 << power:
            return f"{count / (1 << power):,.2f} {unit}"
    return f"{count:,.0f} B"


def count(rows: int) -> str:
    """Rows in full up to a million, then in millions or billions."""
    for power, unit in ((9, "billion"), (6, "million")):
        if rows >= 10**power:
            return f"{rows / 10**power:,.4g} {unit}"
    return f"{rows:,}"


def milliseconds(value: float) -> str:
    """Four digits, in full from 1,000 on."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
