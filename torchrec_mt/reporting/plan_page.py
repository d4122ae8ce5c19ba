"""The page of sharding plans: one HTML file that needs nothing else, made of plan documents by `templates/plan.html`.

What lies on which rank as a treemap, memory and time of the ranks as bars, and the tables; several plans side by side.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment

from torchrec_mt.distributed.plans.plan import PARTS, Plan, PlannedTable
from torchrec_mt.reporting.charts import bar_ticks
from torchrec_mt.reporting.plans import (
    COST_NOTE,
    compared,
    compared_ways,
    count,
    letters,
    milliseconds,
    size,
    way,
    why_busy,
)
from torchrec_mt.reporting.rank_charts import MEMORY, TIMES, fixed, host_tiles, memory_bars, places, time_bars
from torchrec_mt.reporting.rank_kinds import (
    EACH,
    RankKind,
    Shard,
    rank_kinds,
    shard_kinds,
    shard_words,
    shown_kinds,
    spans,
)
from torchrec_mt.reporting.rendering import page_environment

COLOURS = 7
"""Tables with a colour of their own: those with most bytes in any of the plans."""


def plan_page(plans: Sequence[tuple[str, Plan | None]], pairs: Sequence[int]) -> str:
    """The page as HTML.

    Args:
        plans: each with its name; None where the tables do not fit.
        pairs: examples of a step, all ranks together, of each.
    """
    found = [plan for _, plan in plans if plan]
    colours = _coloured(found)
    names = letters(len(plans))
    context = {
        "title": found[0].model if found else "no plan fits",
        "plans": [
            {"letter": letter, "name": name, "plan": plan, "parts": plan and _parts(plan, colours)}
            for letter, (name, plan) in zip(names, plans, strict=True)
        ],
        "figures": compared(plans, pairs),
        "ways": compared_ways(plans),
        "cost_note": COST_NOTE,
        "memory": MEMORY,
        "times": TIMES,
    }
    return _environment().get_template("plan.html").render(context)


@cache
def _environment() -> Environment:
    return page_environment(
        {"size": size, "count": count, "ms": milliseconds, "full": "{:,}".format, "fixed": fixed},
        {"bar_ticks": bar_ticks},
    )


def _coloured(plans: Iterable[Plan]) -> dict[str, int]:
    """The largest tables, each with the number of its colour."""
    held: dict[str, float] = {}
    for plan in plans:
        for table in plan.tables:
            held[table.name] = max(held.get(table.name, 0.0), _held(table))
    return {name: at for at, name in enumerate(sorted(held, key=lambda name: -held[name])[:COLOURS])}


def _held(table: PlannedTable) -> float:
    return table.total("weights") + table.total("sums") + table.total("host")


def _parts(plan: Plan, colours: Mapping[str, int]) -> dict[str, Any]:
    kinds = rank_kinds(plan)
    shown = shown_kinds(kinds)
    tables = _tables(plan)
    return {
        "about": _about(plan),
        "estimates": f"{plan.estimates[:1].upper()}{plan.estimates[1:]}.",
        "cards": _cards(plan, kinds),
        "folded": len(plan.ranks) > EACH,
        "left_out": len(kinds) - len(shown),
        "legend": [(at + 1, name) for name, at in colours.items() if any(one.name == name for one in plan.tables)],
        "others": sum(table.name not in colours for table in plan.tables),
        "on_host": any(kind.load.host for kind in shown),
        "hosts": host_tiles(plan, shown, colours),
        **memory_bars(shown),
        **time_bars(plan, shown),
        "tables": tables,
        "table_places": places(max(row["ms"] for row in tables)),
        "busiest_places": places(max(row["busiest"] for row in tables)),
    }


def _about(plan: Plan) -> dict[str, str]:
    """The head: what was planned for what."""
    cluster = plan.cluster
    memory = cluster["memory_gib"] if cluster["kind"] == "cuda" else cluster["host_memory_gib"]
    whose = "a rank" if cluster["kind"] == "cuda" else "a host"
    ranks = f"{len(plan.ranks):,} rank{'s' if len(plan.ranks) > 1 else ''}"
    price = {"price": f"{cluster['price_per_hour']:,g} an hour"} if "price_per_hour" in cluster else {}
    return {
        "model": plan.model,
        "cluster": f"{plan.label}: {ranks}, {memory:g} GiB {whose}",
        "between ranks": f"{cluster['intra_host_gb_s']:g} GB/s in a host, {cluster['inter_host_gb_s']:g} GB/s between",
        "batch": f"{plan.batch_rows:,} rows a rank",
        "tables": f"{len(plan.tables):,}, {size(plan.table_bytes)} with their sums, all ranks together",
        "optimizer": plan.optimizer,
        "planner": f"TorchRec {plan.torchrec}",
    } | price


def _cards(plan: Plan, kinds: Sequence[RankKind]) -> list[tuple[str, str, list[str]]]:
    """The verdict: title, figure and sentences."""
    busiest = next(kind for kind in kinds if plan.busiest.rank in kind.ranks)
    fullest = max(kinds, key=lambda kind: kind.load.used)
    load, mean = fullest.load, plan.busiest.ms / plan.imbalance
    most_host = max(kinds, key=lambda kind: kind.load.host)
    host = (
        [f"In the host's memory most, {most_host.name}: {size(most_host.load.host)} of {size(load.host_capacity)}."]
        if most_host.load.host
        else []
    )
    bound = (
        f"No plan of the allowed ways takes less than {milliseconds(plan.bound_ms)} ms, "
        f"{plan.bound_ms / busiest.load.ms:.0%} of this."
        if plan.bound_ms and busiest.load.ms
        else "Nothing is known of how much less another plan could take."
    )
    return [
        (
            f"Busiest: {busiest.name}",
            f"{milliseconds(busiest.load.ms)} ms of tables a step",
            [f"Because of {why_busy(plan, busiest.load)}.", bound],
        ),
        (
            "Imbalance",
            f"{plan.imbalance:.2f}× the mean",
            [f"The mean of all ranks is {milliseconds(mean)} ms; a step takes as long as the busiest rank."],
        ),
        (
            f"Fullest: {fullest.name}",
            f"{size(load.used)} of {size(load.capacity)}",
            [
                f"{size(load.reserved)} are reserved ({plan.reserve:.0%}), "
                f"{size(load.capacity - load.reserved - load.used)} are free.",
                *host,
            ],
        ),
    ]


def _tables(plan: Plan) -> list[dict[str, Any]]:
    """Rows of the table of tables, the largest first."""
    return [_table(plan, table) for table in sorted(plan.tables, key=lambda table: -_held(table))]


def _table(plan: Plan, table: PlannedTable) -> dict[str, Any]:
    holders, busiest = table.ranks, plan.busiest.rank
    on_busiest = [table.costs[shard[5]] for shard in table.shards if shard[0] == busiest]
    return {
        "table": table,
        "way": way(table),
        "ranks": "all" if len(holders) == len(plan.ranks) > 1 else spans(holders),
        "holders": len(holders),
        "held": _held(table),
        "host": table.total("host"),
        "buffers": table.total("buffers"),
        "ms": sum(table.total(part) for part in PARTS),
        "busiest": sum(cost[part] for cost in on_busiest for part in PARTS),
        "shards": [
            {"count": len(ranks), "ranks": spans(ranks), "block": shard_words(shard), "times": _spent(shard)}
            for ranks, shard in shard_kinds(table)
        ],
    }


def _spent(shard: Shard) -> str:
    """The milliseconds of a shard: those of a pass, then those of its communication."""
    ms = {part: milliseconds(shard.cost[part]) for part in PARTS}
    passes = (f"{way} {ms[f'{way}_compute']} + {ms[f'{way}_comms']}" for way in ("forward", "backward"))
    return ", ".join([*passes, *([f"prefetch {ms['prefetch']}"] if shard.cost["prefetch"] else [])])
