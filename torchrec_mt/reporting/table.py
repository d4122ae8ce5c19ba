"""An evaluation as tables for the terminal: systems with intervals, and slices of the model beside its best rival."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torchrec_mt.reporting.trimmed import Trimmed

ALPHA = 0.05
_PLAIN = ("anchor_popularity", "anchor_words", "target_training", "target_popularity")
"""Slicings that are always shown; of the columns of the data only those asked for."""
_OF_ORACLE = "recall@100"
JUDGED_COLUMNS = {
    "condensed_ndcg@10": "judged NDCG@10",
    "ndcg@10": "NDCG@10",
    "bpref": "bpref",
    "unjudged@10": "unjudged@10",
}
_NAMES = 22
"""Columns of names in a table of 80: long ones give way, not the numbers."""
_NO_RIVALS = ("model", "fusion", "oracle")


def evaluation_tables(evaluation: Mapping[str, Any]) -> RenderableType:
    """Main metrics of each system with what to know of the marks, and below it the slices."""
    notes = [
        "± half of the 95% interval; bold: best of all but the oracle; ≈ the model does not differ significantly "
        f"(p ≥ {ALPHA} after Holm's correction for all comparisons)"
    ]
    for task, result in evaluation["tasks"].items():
        if result["num_without_positives"]:
            notes.append(f"{task}: {result['num_without_positives']:,} anchors without a right answer are left out")
    parts: list[RenderableType] = [evaluation_table(evaluation), Text(), *(Text(note, style="dim") for note in notes)]
    pools = judged_table(evaluation)
    if pools.row_count:
        parts += [Text(), pools]
    slices = slices_table(evaluation)
    if slices.row_count:
        parts += [Text(), slices]
    return Trimmed(Group(*parts))


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """Main metrics per task and system, the best of all but the oracle in bold, and the share of the oracle's
    Recall@100."""
    title = f"{evaluation['split']} split, {evaluation['model']} model, ranked over the whole catalogue"
    if evaluation["max_anchors"]:
        title += f", at most {evaluation['max_anchors']:,} anchors a task"
    table = plain_table(title, "task (anchors), system")
    table.columns[0].max_width = _NAMES
    metrics = evaluation["main_metrics"]
    share = _OF_ORACLE in metrics and "oracle" in evaluation["baselines"]
    for name in (*map(metric_title, metrics), *(["of oracle"] if share else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for task, result in evaluation["tasks"].items():
        _add_task(table, task, result, metrics, share=share)
    return table


def judged_table(evaluation: Mapping[str, Any]) -> Table:
    """Measures of the judged pools per task and system, a random order first."""
    table = plain_table("judged pools: unjudged candidates left out, or counted", "task (anchors, judged), system")
    for title in JUDGED_COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for task, result in evaluation["tasks"].items():
        if pool := result.get("judged"):
            table.add_row(f"[bold]{task}[/] [dim]({pool['num_anchors']:,}, {pool['num_judged']:,})[/]")
            for name in (names := ordered(pool["systems"])):
                cells = [decimals(pool["systems"][name][measure]) for measure in JUDGED_COLUMNS]
                table.add_row(f"  {name}", *cells, end_section=name == names[-1])
    return table


def plain_table(title: str, first: str, *, gap: int = 0) -> Table:
    """A titled table, no wider than its cells; columns are added to the first.

    Args:
        gap: blanks between columns.
    """
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, gap, 0, 0),
    )
    table.add_column(first, no_wrap=True)
    return table


def metric_title(name: str) -> str:
    """As a reader writes it: Recall@10, NDCG@10, Hit rate@10."""
    kind, at, k = name.partition("@")
    return (kind.upper() if re.fullmatch("ndcg|mrr|map", kind) else kind.replace("_", " ").capitalize()) + at + k


def decimals(value: float | None, digits: int = 4) -> str:
    """A share without its leading zero and as wide as all others: .4805, 1.000; "-" where there is no number."""
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else f"{value:.{digits - 1}f}"


def with_interval(
    value: float | None, interval: tuple[float | None, float | None] | None, *, best: bool = False, alike: bool = False
) -> Text:
    """`.4805 ±.012`, the interval dim, the best bold, `≈` where the model does not differ from it."""
    text = Text(decimals(value), style="bold" if best else "")
    low, high = interval or (None, None)
    if low is None or high is None:
        return text.append("≈      " if alike else "")
    return text.append("≈" if alike else " ", style="not bold").append(
        f"±{decimals((high - low) / 2, 3)}", style="not bold dim"
    )


def ordered(systems: Mapping[str, Any]) -> list[str]:
    """Rivals as they come, then the model, what is made of it, and the oracle."""
    last = [name for name in _NO_RIVALS if name in systems]
    return [name for name in systems if name not in last] + last


def strongest_rival(systems: Mapping[str, Any], metric: str) -> str | None:
    """The baseline with the highest mean that neither is made of the model nor knows the truth; None without one."""
    rivals = [name for name in systems if name not in _NO_RIVALS and systems[name][metric] is not None]
    return max(rivals, key=lambda name: systems[name][metric], default=None)


def best_value(systems: Mapping[str, Any], metric: str) -> float | None:
    """The highest mean of all systems but the oracle; None without one."""
    values = [scores[metric] for name, scores in systems.items() if name != "oracle" and scores[metric] is not None]
    return max(values, default=None)


def _add_task(table: Table, task: str, result: Mapping[str, Any], metrics: list[str], *, share: bool) -> None:
    systems, names = result["systems"], ordered(result["systems"])
    best = {metric: best_value(systems, metric) for metric in metrics}
    ceiling = systems.get("oracle", {}).get(_OF_ORACLE)
    table.add_row(f"[bold]{task}[/] [dim]({result['num_anchors']:,})[/]", end_section=not systems)
    for name in names:
        cells = [
            with_interval(
                systems[name][metric],
                result["intervals"].get(name, {}).get(metric),
                best=name != "oracle" and systems[name][metric] is not None and systems[name][metric] == best[metric],
                alike=name in result["comparisons"] and not differs(result["comparisons"][name][metric]),
            )
            for metric in metrics
        ]
        if share:
            cells.append(Text(f"{systems[name][_OF_ORACLE] / ceiling:.0%}" if ceiling else "-"))
        table.add_row(f"  {name}", *cells, end_section=name == names[-1])


def differs(comparison: Mapping[str, Any]) -> bool:
    """Whether a comparison is significant after the correction."""
    return comparison["p_holm"] is not None and comparison["p_holm"] < ALPHA


def slices_table(evaluation: Mapping[str, Any]) -> Table:
    """The model on each slice beside the rival that is the strongest of the task."""
    metrics = evaluation["main_metrics"]
    metric = _OF_ORACLE if _OF_ORACLE in metrics else metrics[0]
    table = plain_table(f"{metric_title(metric)} by slice", "task, slice")
    for name in ("anchors", "model", "best rival"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, result in evaluation["tasks"].items():
        systems = result["systems"]
        if "model" not in systems:
            continue
        rival = strongest_rival(systems, metric)
        rows = list(_slice_rows(result["slices"], evaluation["slices"]))
        beside = f" [dim]beside {rival}[/]" if rival else ""
        table.add_row(f"[bold]{task}[/]{beside}", end_section=not rows)
        for number, (slicing, label, part) in enumerate(rows):
            cells = [
                with_interval(part["systems"][name][metric], part["intervals"][name][metric]) if name else Text("-")
                for name in ("model", rival)
            ]
            shown = f"  {_cut(slicing.replace('_', ' ', 1), 23)}: {_cut(label, 18)}"
            table.add_row(Text(shown), f"{part['num_anchors']:,}", *cells, end_section=number == len(rows) - 1)
    return table


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _slice_rows(slices: Mapping[str, Any], asked: list[str]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    features = {name.rpartition(".")[2] for name in asked}
    for slicing, labels in slices.items():
        if slicing in _PLAIN or any(slicing.endswith(f"_{feature}") for feature in features):
            for label, part in labels.items():
                yield slicing, label, part
