"""The ranks of a plan as charts of its page: tiles of a treemap by host, bars of memory, bars of time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from torchrec_mt.distributed.plans.plan import PARTS, Plan
from torchrec_mt.reporting import charts
from torchrec_mt.reporting.charts import Part
from torchrec_mt.reporting.plans import milliseconds, size
from torchrec_mt.reporting.rank_kinds import RankKind, Shard, shard_words, spans
from torchrec_mt.reporting.treemap import Area, tile

_AREAS = 1200
"""Shards drawn in all tiles of a plan together; what is left of a rank is one area. At least 8 a rank."""
_WIDE, _SMALL = (256, 192), (128, 112)
"""Pixels that a tile has at least: where there are few, and else. As in `plan.css`."""
MEMORY = {"weights": "weights", "sums": "sums", "buffers": "buffers", "dense": "towers", "reserved": "reserve"}
"""What a rank's memory is taken by, as `RankLoad` has it, in words."""
TIMES = {part: part.replace("_", " ") for part in PARTS}


def host_tiles(plan: Plan, kinds: Sequence[RankKind], colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """Tiles by the hosts on which their ranks are."""
    grouped: dict[tuple[int, ...], list[RankKind]] = {}
    for kind in kinds:
        hosts = sorted({rank // int(plan.cluster["ranks_per_host"]) for rank in kind.ranks})
        grouped.setdefault(tuple(hosts), []).append(kind)
    most = max(kind.held for kind in kinds) or 1
    limit = max(8, _AREAS // len(kinds))
    wide = len(kinds) <= 4
    return [
        {
            "name": f"host{'s' if len(hosts) > 1 else ''} {spans(hosts)}",
            "wide": wide,
            "tiles": [
                {
                    "kind": kind,
                    "drawn": _tile(kind, kind.held / most, limit, colours, wide),
                    "most": _most_held(kind),
                    "all": _most_held(kind, limit),
                }
                for kind in alike
            ],
        }
        for hosts, alike in grouped.items()
    ]


def _tile(kind: RankKind, share: float, limit: int, colours: Mapping[str, int], wide: bool) -> Markup:
    held = [shard for shard in kind.shards if shard.held > 0]
    drawn, rest = (held, []) if len(held) <= limit else (held[: limit - 1], held[limit - 1 :])
    areas = [_area(shard, colours) for shard in drawn]
    if rest:
        left = sum(shard.held for shard in rest)
        areas.append(Area(left, f"{len(rest)} others", f"+{len(rest)}", "t", f"{len(rest)} smaller: {size(left)}"))
        areas.sort(key=lambda area: -area.size)
    width, height = _WIDE if wide else _SMALL
    return tile(areas, share, f"tables of {kind.name}", width=width, height=height)


def _area(shard: Shard, colours: Mapping[str, int]) -> Area:
    number = colours.get(shard.table.name)
    on_host = " host" if shard.cost["host"] else ""
    return Area(
        shard.held,
        shard.table.name,
        "" if number is None else f"{number + 1}",
        f"{'t' if number is None else f't{number}'}{on_host}",
        f"{shard.table.name}: {shard_words(shard)}",
    )


def _most_held(kind: RankKind, limit: int = 3) -> str:
    """The tables of which a rank holds most, with the bytes."""
    held: dict[str, float] = {}
    for shard in kind.shards:
        held[shard.table.name] = held.get(shard.table.name, 0.0) + shard.held
    most = sorted(held, key=lambda name: -held[name])
    told = ", ".join(f"{name} {size(held[name])}" for name in most[:limit])
    return f"{told}, {len(most) - limit} more" if len(most) > limit else told or "no table"


def memory_bars(kinds: Sequence[RankKind]) -> dict[str, Any]:
    """Bars of the device's memory, and of the host's where tables lie there."""
    rows, capacity = [], max(kind.load.capacity for kind in kinds)
    host_capacity = max(kind.load.host_capacity for kind in kinds) if any(kind.load.host for kind in kinds) else 0
    for kind in kinds:
        load = kind.load
        free = load.capacity - load.used - load.reserved
        told = {f"m{at}": (getattr(load, name), words) for at, (name, words) in enumerate(MEMORY.items())}
        told["free"] = (free, "free")
        parts = [Part(value, role, f"{words} {size(value)}") for role, (value, words) in told.items()]
        host = Part(load.host, "m0", f"tables in the host's memory {size(load.host)} of {size(load.host_capacity)}")
        rows.append(
            {
                "kind": kind,
                "bar": charts.bar(parts, capacity),
                "values": [value for value, _ in told.values()],
                "host": charts.bar([host], host_capacity) if host_capacity else None,
            }
        )
    return {
        "memory_rows": rows,
        "memory_axis": charts.axis(capacity, size),
        "host_axis": charts.axis(host_capacity, size) if host_capacity else None,
    }


def time_bars(plan: Plan, kinds: Sequence[RankKind]) -> dict[str, Any]:
    """Bars of what the ranks do in a step, with the mean marked."""
    most, mean = plan.busiest.ms, plan.busiest.ms / plan.imbalance
    top = charts.ceiling([most])
    rows = []
    for kind in kinds:
        values = [getattr(kind.load, part) for part in PARTS]
        parts = [
            Part(value, f"p{at}", f"{words} {milliseconds(value)} ms")
            for at, (words, value) in enumerate(zip(TIMES.values(), values, strict=True))
        ]
        rows.append(
            {
                "kind": kind,
                "bar": charts.bar(parts, top, mean),
                "values": values,
                "over": kind.load.ms / mean if mean else 1.0,
            }
        )
    return {"time_rows": rows, "time_axis": charts.axis(top), "mean": mean, "time_places": places(most)}


def places(most: float) -> int:
    """Decimal places that leave four digits of the largest number of a column."""
    return min(max(3 - math.floor(math.log10(most)), 0), 6) if most > 0 else 0


def fixed(value: float, decimals: int) -> str:
    """With so many decimal places; nothing at all is 0."""
    return f"{value:,.{decimals}f}" if value else "0"
