"""An experiment's outcome as tables for the terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from torchrec_mt.reporting.grid_verdicts import (
    behind_on,
    headline,
    notes,
    outcome,
    percent,
    told_difference,
    told_gain,
    verdicts,
)
from torchrec_mt.reporting.plans import size
from torchrec_mt.reporting.table import decimals, metric_title, plain_table
from torchrec_mt.reporting.trimmed import Trimmed

Rows = list[list[str]]
Section = tuple[str, list[str], Rows]
"""Title, head and rows of a table."""
MARKS = {"ahead": "▲", "behind": "▼", "alike": "≈"}
_WORST = 5
"""Slices that are told of those on which a method falls behind."""


def grid_tables(results: Mapping[str, Any]) -> RenderableType:
    """Methods by task, what they gain and cost, how far they come in the same time, who loses where, what it says."""
    parts: list[RenderableType] = [Text(results["question"], style="bold"), Text()]
    for title, head, rows in sections(results):
        table = plain_table(title, head[0], gap=2)
        for name in head[1:]:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        parts += [table, Text()]
    said = [headline(results), *verdicts(results)]
    return Trimmed(Group(*parts, *(Text(line) for line in said), Text(), *map(_dim, notes(results))))


def _dim(line: str) -> Text:
    return Text(line, style="dim")


def grid_markdown(results: Mapping[str, Any]) -> str:
    """The same as Markdown; curves and charts are on the page."""
    parts = [f"# {results['question']}", "", headline(results), ""]
    for title, head, rows in sections(results):
        parts += [f"## {title}", "", _line(head), _line(["---"] * len(head)), *map(_line, rows), ""]
    parts += ["## What it says", "", *(f"- {line}" for line in verdicts(results)), ""]
    parts += [*(f"{line}.  " for line in notes(results)), ""]
    fixed = results["fixed"]
    parts += [
        "## What was fixed, what varied",
        "",
        f"- fixed: {', '.join([*fixed['base'], *fixed['settings']])}",
        f"- seeds: {', '.join(map(str, results['seeds']))}",
    ]
    parts += [f"- {name}: {', '.join(keys) or 'as the config says'}" for name, keys in results["varied"].items()]
    parts += [f"- made on {machine}: {', '.join(names)}" for machine, names in results["machines"].items()]
    return "\n".join([*parts, "", "Curves and charts: [results.html](results.html)"]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def sections(results: Mapping[str, Any]) -> list[Section]:
    """Title, head and rows of each table."""
    return [_by_task(results), *_gains(results), _costs(results), *_equal_time(results), *_losses(results)]


def _by_task(results: Mapping[str, Any]) -> Section:
    rows = []
    for task, methods in results["tasks"].items():
        rows.append([f"{task} ({num_anchors(methods):,})", *([""] * len(results["metrics"]))])
        rows += [
            [
                f"  {name}{fewer_seeds(results, found)}",
                *(_cell(found["metrics"][metric]) for metric in results["metrics"]),
            ]
            for name, found in methods.items()
        ]
    head = ["task (anchors), method", *map(metric_title, results["metrics"])]
    return f"{results['split']} split, best model of each run", head, rows


def num_anchors(methods: Mapping[str, Any]) -> int:
    """Of a task."""
    return int(next(iter(methods.values()))["num_anchors"])


def fewer_seeds(results: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How many seeds a method has on a task, where others failed or have not been run."""
    there = found["num_seeds"]
    return "" if there == len(results["seeds"]) else f" ({there} of {len(results['seeds'])} seeds)"


def fewer_tasks(results: Mapping[str, Any], gain: Mapping[str, Any]) -> str:
    """Of how many tasks a method's mean gain is, where that is not all."""
    there = gain["num_tasks"]
    return "" if there == len(results["trained"]) else f" ({there} of {len(results['trained'])} tasks)"


def _cell(found: Mapping[str, Any]) -> str:
    text, beside = with_spread(found), found.get("beside_reference")
    return text if beside is None else f"{text} {MARKS[outcome(beside)]}"


def with_spread(found: Mapping[str, Any]) -> str:
    """A mean and its standard deviation over seeds."""
    spread = found["sd_over_seeds"]
    return decimals(found["mean"]) + (f" ±{decimals(spread, 3)}" if spread is not None else "")


def _gains(results: Mapping[str, Any]) -> list[Section]:
    rows = []
    for name, gain in results["gain"].items():
        rows.append([name + fewer_tasks(results, gain["all"]), told_gain(gain["all"])])
        rows += [[f"  {task}", told_gain(one)] for task, one in gain["tasks"].items()]
    title = f"gain over {results['reference']}, {metric_title(results['metrics'][0])}"
    return [(title, ["method (mean over tasks), task", "gain (95% interval)"], rows)] if rows else []


def _costs(results: Mapping[str, Any]) -> Section:
    rows = [
        [
            name,
            f"{cost['step_ms']:.1f}",
            f"{cost['steps']:,.0f}",
            f"{cost['seconds']:,.0f}",
            f"{cost['dense_parameters']:,.0f}",
            size(cost["table_bytes"]),
        ]
        for name, cost in results["cost"].items()
    ]
    return "what each costs", ["method", "ms a step", "steps", "s", "dense", "tables"], rows


def _equal_time(results: Mapping[str, Any]) -> list[Section]:
    found = results["equal_time"]
    if not found:
        return []
    tasks = list(dict.fromkeys(task for one in found["methods"].values() for task in one["tasks"]))
    rows = [
        [
            name + fewer_seeds(results, one),
            f"{one['share']:.0%}",
            *(with_spread(one["tasks"][task]) if task in one["tasks"] else "-" for task in tasks),
            "" if name == results["reference"] else percent(one["gain"]),
        ]
        for name, one in found["methods"].items()
    ]
    title = f"equal time, {found['seconds']:,.0f} s of training: valid split, {metric_title(found['metric'])}"
    return [(title, ["method", "of its steps", *tasks, "gain"], rows)]


def _losses(results: Mapping[str, Any]) -> list[Section]:
    """Slices on which each method falls behind the reference, those first whose interval lies lowest."""
    rows = []
    for name in results["cost"]:
        worse = behind_on(results, name)[:_WORST]
        rows += [[name, "", ""]] if worse else []
        rows += [
            [f"  {task}, {title}", f"{part['num_anchors']:,}", told_difference(part, 3)] for task, title, part in worse
        ]
    title = f"where a method falls behind {results['reference']}, {metric_title(results['metrics'][0])}"
    return [(title, ["method, slice", "anchors", "less (95% interval)"], rows)] if rows else []
