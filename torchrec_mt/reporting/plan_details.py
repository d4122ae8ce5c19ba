"""What goes with a sharding plan, as tables for the terminal: why a table lies so, how two plans differ, how well a run
kept to its plan."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from torchrec_mt.distributed.plans.calibrate import Calibration, Term
from torchrec_mt.distributed.plans.diff import Difference, PlanDiff
from torchrec_mt.distributed.plans.explain import Explained, Way
from torchrec_mt.reporting.plans import rank_range, size
from torchrec_mt.reporting.table import plain_table
from torchrec_mt.reporting.trimmed import Trimmed


def explained_tables(explained: Sequence[Explained]) -> RenderableType:
    """A table of ways per embedding table."""
    return Trimmed(Group(*(part for one in explained for part in (Text(), *_explained(one)))))


def _explained(one: Explained) -> list[RenderableType]:
    on_host = any(way.largest_host for way in one.ways)
    title = f"why '{one.table}' lies so (the config says '{one.wish}')"
    table = plain_table(title, "way", gap=1 if on_host else 2)
    for name in ("pieces", "largest", *(["on host"] if on_host else []), "all, ms", "busiest"):
        table.add_column(name, justify="right", no_wrap=True)
    reasons: dict[str, int] = {}
    for way in one.ways:
        mark = f" {reasons.setdefault(way.refused, len(reasons) + 1)})" if way.refused else ""
        table.add_row(
            Text(f"{_name(way)}{mark}", style="bold" if way.chosen else "dim" if way.refused else ""),
            f"{way.pieces}",
            size(way.largest_device),
            *([size(way.largest_host)] if on_host else []),
            f"{way.total_ms:,.3g}" if way.total_ms < 1000 else f"{way.total_ms:,.0f}",
            "no fit" if way.busiest_ms is None else f"{way.busiest_ms:.4g}",
        )
    lines = [f"{number}) {reason}" for reason, number in reasons.items()]
    if one.without_wish_ms is not None:
        lines.append(f"with 'auto' for this table the busiest rank would take {one.without_wish_ms:.4g} ms")
    lines.append(
        "bold: chosen; largest: piece; busiest: ms of the rank that is, if this table lay so and no other moved"
    )
    return [table, *(Text(line, style="dim") for line in lines)]


def _name(way: Way) -> str:
    usual = way.kernel in ("fused", "dense")
    return way.sharding_type + ("" if usual else f" {way.kernel.removeprefix('fused_')}")


def diff_tables(found: PlanDiff) -> RenderableType:
    """How two plans differ."""
    if found.is_empty:
        return Text("no difference")
    table = plain_table("plans", "", gap=2)
    for name in ("first", "second"):
        table.add_column(name, justify="right", overflow="fold")
    for title, group in (("supposed", found.supposed), ("takes", found.takes), ("tables", found.tables)):
        for number, one in enumerate(group):
            table.add_row(Text(f"{title}: {one.what}"), *_cells(one), end_section=number == len(group) - 1)
    return Trimmed(table)


def _cells(one: Difference) -> tuple[str, str]:
    values = (one.first, one.second)
    first, second = (_cell(one.what, value) for value in values)
    return first, second


def _cell(what: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        kernel = "" if value["kernel"] in ("fused", "dense") else f" ({value['kernel']})"
        shape = f"{value['rows']:,} x {value['dim']} {value['dtype']}"
        ranks = rank_range(value["ranks"])
        return f"{shape}, {value['sharding_type']}{kernel} on {ranks}, {size(value['bytes'])}"
    if what.endswith("bytes"):
        return size(value)
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def calibration_table(found: Calibration) -> RenderableType:
    """Foretold and measured, by term."""
    table = plain_table(f"a run beside its plan ({found.lines} lines of its log)", "term", gap=2)
    for name in ("rank", "foretold", "measured", "measured / foretold"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, term in enumerate(found.terms):
        ends = number + 1 < len(found.terms) and found.terms[number + 1].unit != term.unit
        ratio = "-" if term.ratio is None else f"{term.ratio:.3f}"
        rank = "slowest" if term.rank is None else str(term.rank)
        table.add_row(
            term.name, rank, _amount(term, term.predicted), _amount(term, term.measured), ratio, end_section=ends
        )
    return Trimmed(table)


def _amount(term: Term, value: float) -> str:
    return size(value) if term.unit == "B" else f"{value:.3g} ms"
