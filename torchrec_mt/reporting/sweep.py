"""A sweep's outcome as a table for the terminal: its best trials, what matters, what failed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from torchrec_mt.reporting.table import decimals, metric_title, plain_table
from torchrec_mt.reporting.trimmed import Trimmed

_SHOWN = 10
"""Best trials."""
_WIDEST = 24
"""Columns of a value: a table is cut."""


def sweep_tables(results: Mapping[str, Any]) -> RenderableType:
    """The best finished trials with their values, steps and minutes, and below them what there is to know of them."""
    finished = [one for one in results["trials"] if one["state"] == "complete"]
    finished = sorted(finished, key=lambda one: -one["value"])[:_SHOWN]
    keys = list(results["plan"]["keys"])
    table = plain_table("best trials on the validation split", "trial", gap=2)
    for title in short_names(keys):
        table.add_column(title, justify="right", overflow="ellipsis", no_wrap=True, max_width=_WIDEST)
    for title in (metric_title(results["metric"]), "steps", "minutes"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in finished:
        values = [_shown(one["values"][key]) for key in keys]
        table.add_row(str(one["trial"]), *values, decimals(one["value"]), f"{one['steps']:,}", f"{one['minutes']:.1f}")
    parts: list[RenderableType] = [Text(results["goal"], style="bold"), Text()]
    if finished:
        parts += [table, Text()]
    return Trimmed(Group(*parts, *(Text(line, style="dim") for line in notes(results))))


def short_names(keys: Sequence[str]) -> list[str]:
    """As much of the end of each dotted key as tells it from the others."""
    names = []
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for other in keys if other != key]
        names.append(next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), key))
    return names


def notes(results: Mapping[str, Any]) -> Iterator[str]:
    """How many trials ended how, what matters, why trials failed, and what the best one is worth."""
    states = ", ".join(f"{count} {state}" for state, count in results["states"].items())
    yield f"trials: {states or 'none'}"
    if results["importances"]:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in results["importances"].items())
        yield f"what decides whether a trial is among the best tenth (PED-ANOVA): {shares}"
    yield from (f"trial {one['trial']} failed: {one['why']}" for one in results["trials"] if one["state"] == "failed")
    if results["best"]:
        yield f"trial {results['best']['trial']} was {results['note']}"


def _shown(value: Any) -> str:
    match value:
        case float():
            return f"{value:.4g}"
        case {"kind": str(kind), **rest}:
            return " ".join([kind, *(f"{name}={_shown(inner)}" for name, inner in rest.items())])
    return str(value)
