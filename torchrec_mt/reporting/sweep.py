"""A sweep's outcome as a table for the terminal: its best trials, what matters, what failed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from torchrec_mt.reporting.table import decimals, metric_title, plain_table
from torchrec_mt.reporting.trimmed import Trimmed

_SHOWN = 10
"""Best trials."""


def sweep_tables(results: Mapping[str, Any]) -> RenderableType:
    """The best finished trials with their values, steps and minutes, and below them what there is to know of them."""
    finished = [one for one in results["trials"] if one["state"] == "complete"]
    finished = sorted(finished, key=lambda one: -one["value"])[:_SHOWN]
    names = short_names(list(results["plan"]["keys"]))
    table = plain_table("best trials on the validation split", "trial", gap=2)
    for title in (metric_title(results["metric"]), "steps", "minutes"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("values", overflow="fold")
    for one in finished:
        values = ", ".join(f"{name} {_shown(one['values'][key])}" for key, name in names.items())
        table.add_row(
            str(one["trial"]), decimals(one["value"]), f"{one['steps']:,}", f"{one['minutes']:.1f}", Text(values)
        )
    parts: list[RenderableType] = [Text(results["goal"], style="bold"), Text()]
    if finished:
        parts += [table, Text()]
    return Trimmed(Group(*parts, *(Text(line, style="dim") for line in notes(results))))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Of each dotted key as much of its end as tells it from the others."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [f".{other}" for other in keys if other != key]
        names[key] = next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), key)
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
