"""A comparison of two runs as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from torchrec_mt.reporting.table import ALPHA, decimals, differs, metric_title, plain_table
from torchrec_mt.reporting.trimmed import Trimmed

_COLUMNS = ("first", "second", "difference", "95% interval", "p (Holm)", "d_z")


def comparison_table(compared: Mapping[str, Any]) -> RenderableType:
    """Per task and metric both means, first minus second with its interval, the corrected p-value, the effect size."""
    table = plain_table(
        f"{compared['split']} split, the models of two runs on the same anchors", "task (anchors), metric"
    )
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for task, result in compared["tasks"].items():
        table.add_row(f"[bold]{task}[/] [dim]({result['num_anchors']:,})[/]")
        for number, (metric, found) in enumerate(result["metrics"].items()):
            table.add_row(
                f"  {metric_title(metric)}",
                decimals(found["first"]),
                decimals(found["second"]),
                Text(_signed(found["difference"], 4), style="bold" if differs(found) else ""),
                Text(f"{_signed(found['low'], 3)} to {_signed(found['high'], 3)}", style="dim"),
                decimals(found["p_holm"]),
                _signed(found["effect_size"], 2),
                end_section=number == len(result["metrics"]) - 1,
            )
    notes = (
        f"first: {compared['first']}; second: {compared['second']}; difference: first minus second",
        f"bold: significant at {ALPHA} after Holm's correction for {compared['num_comparisons']} comparisons; "
        "d_z: difference in standard deviations of the anchors' differences",
    )
    return Trimmed(Group(table, Text(), *(Text(note, style="dim") for note in notes)))


def _signed(value: float | None, digits: int) -> str:
    return ("+" if value is not None and value > 0 else "") + decimals(value, digits)
