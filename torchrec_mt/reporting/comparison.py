"""A comparison of two runs, or of a run with its twins, as a table for the terminal."""

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torchrec_mt.reporting.table import ALPHA, decimals, differs, metric_title, plain_table
from torchrec_mt.reporting.trimmed import Trimmed

_NAMES = 20
"""Widest name of a task with its anchors: the rest of the twins' table takes 60 columns."""
Found = Mapping[str, Any]
"""What was found of a metric of a task."""


def comparison_table(compared: Mapping[str, Any]) -> RenderableType:
    """Per task and metric both means, first minus second with its interval, the corrected p-value, the effect size."""
    table = plain_table(
        f"{compared['split']} split, the models of two runs on the same anchors", "task (anchors), metric"
    )
    _fill(
        table,
        compared,
        {
            "first": lambda found: decimals(found["first"]),
            "second": lambda found: decimals(found["second"]),
            "difference": _difference,
            "95% interval": _interval,
            "p (Holm)": lambda found: decimals(found["p_holm"]),
            "d_z": lambda found: _signed(found["effect_size"], 2),
        },
    )
    return _with_notes(
        table,
        f"first: {compared['first']}; second: {compared['second']}; difference: first minus second",
        f"{_significant(compared)}; d_z: difference in standard deviations of the anchors' differences",
    )


def twins_table(compared: Mapping[str, Any]) -> RenderableType:
    """Per task and metric the means of the unified model and of the task's twin, their difference with its interval,
    the corrected p-value, and which is better."""
    title = f"{compared['split']} split, one model for all tasks beside one for each, on the same anchors"
    table = plain_table(title, "task, metric")
    table.columns[0].max_width = _NAMES
    _fill(
        table,
        compared,
        {
            "unified": lambda found: decimals(found["unified"]),
            "twin": lambda found: decimals(found["twin"]),
            "difference": _difference,
            "95% interval": _interval,
            "p": lambda found: decimals(found["p_holm"]),
            "better": better,
        },
    )
    return _with_notes(
        table,
        "difference: unified minus twin; better: no difference where its interval holds 0, unclear where it does not "
        f"but p is {ALPHA} or more",
        _significant(compared),
        "one training of each: another seed would move both",
    )


def better(found: Found) -> str:
    """Which of the two: "unified" or "twin"; "no difference" where the interval holds 0; "unclear" where it does not,
    but the difference is not significant; "-" where nothing is known."""
    if found["low"] is None or found["high"] is None:
        return "-"
    if found["low"] <= 0 <= found["high"]:
        return "no difference"
    if not differs(found):
        return "unclear"
    return "unified" if found["difference"] > 0 else "twin"


def _fill(table: Table, compared: Mapping[str, Any], columns: Mapping[str, Callable[[Found], str | Text]]) -> None:
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for task, result in compared["tasks"].items():
        table.add_row(f"[bold]{task}[/] [dim]({result['num_anchors']:,})[/]")
        for number, (metric, found) in enumerate(result["metrics"].items()):
            table.add_row(
                f"  {metric_title(metric)}",
                *(cell(found) for cell in columns.values()),
                end_section=number == len(result["metrics"]) - 1,
            )


def _difference(found: Found) -> Text:
    return Text(_signed(found["difference"], 4), style="bold" if differs(found) else "")


def _interval(found: Found) -> Text:
    return Text(f"{_signed(found['low'], 3)} to {_signed(found['high'], 3)}", style="dim")


def _significant(compared: Mapping[str, Any]) -> str:
    return f"bold: significant at {ALPHA} after Holm's correction for {compared['num_comparisons']} comparisons"


def _with_notes(table: Table, *notes: str) -> RenderableType:
    return Trimmed(Group(table, Text(), *(Text(note, style="dim") for note in notes)))


def _signed(value: float | None, digits: int) -> str:
    return ("+" if value is not None and value > 0 else "") + decimals(value, digits)
