"""An experiment's outcome as tables for the terminal and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from torchrec_mt.reporting.plans import size
from torchrec_mt.reporting.table import ALPHA, decimals, metric_title, plain_table
from torchrec_mt.reporting.trimmed import Trimmed

Rows = list[list[str]]
_NUMBERS = {"step_ms": 1, "seconds": 0, "dense_parameters": 0}
"""Costs that are numbers, and their decimals."""


def grid_tables(results: Mapping[str, Any]) -> RenderableType:
    """Methods by task, what they cost, who loses where, and what it says."""
    parts: list[RenderableType] = [Text(results["question"], style="bold"), Text()]
    for title, head, rows in sections(results):
        table = plain_table(title, head[0], gap=2)
        for name in head[1:]:
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        parts += [table, Text()]
    return Trimmed(Group(*parts, *(Text(line) for line in verdicts(results)), Text(), *map(_dim, notes(results))))


def _dim(line: str) -> Text:
    return Text(line, style="dim")


def grid_markdown(results: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    parts = [f"# {results['question']}", ""]
    for title, head, rows in sections(results):
        parts += [f"## {title}", "", _line(head), _line(["---"] * len(head)), *map(_line, rows), ""]
    parts += ["## What it says", "", *(f"- {line}" for line in verdicts(results)), "", *notes(results), ""]
    fixed = results["fixed"]
    parts += [
        "## What was fixed, what varied",
        "",
        f"- fixed: {', '.join(fixed['base'])}; {', '.join(fixed['settings'])}",
    ]
    parts += [f"- {name}: {', '.join(keys) or 'as the config says'}" for name, keys in results["varied"].items()]
    return "\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def sections(results: Mapping[str, Any]) -> list[tuple[str, list[str], Rows]]:
    """Title, head and rows of each table."""
    return [_by_task(results), _costs(results), *_losses(results)]


def _by_task(results: Mapping[str, Any]) -> tuple[str, list[str], Rows]:
    rows = []
    for task, methods in results["tasks"].items():
        rows.append([f"{task} ({_anchors(methods):,})", *([""] * len(results["metrics"]))])
        rows += [
            [f"  {name}", *(_cell(found["metrics"][metric]) for metric in results["metrics"])]
            for name, found in methods.items()
        ]
    head = ["task (anchors), method", *map(metric_title, results["metrics"])]
    return f"{results['split']} split, best model of each run", head, rows


def _anchors(methods: Mapping[str, Any]) -> int:
    return int(next(iter(methods.values()))["num_anchors"])


def _cell(found: Mapping[str, Any]) -> str:
    spread = found["sd_over_seeds"]
    text = decimals(found["mean"]) + (f" ±{decimals(spread, 3)}" if spread is not None else "")
    beside = found.get("beside_reference")
    if beside is None:
        return text
    return text + (" ≈" if not _differs(beside) else " ▲" if beside["difference"] > 0 else " ▼")


def _differs(beside: Mapping[str, Any]) -> bool:
    return beside["p_holm"] is not None and beside["p_holm"] < ALPHA


def _costs(results: Mapping[str, Any]) -> tuple[str, list[str], Rows]:
    rows = []
    for name, cost in results["cost"].items():
        gain = results["gain"].get(name)
        numbers = (
            [f"{cost['step_ms']:.1f}", f"{cost['seconds']:,.0f}", f"{cost['dense_parameters']:,.0f}"] if cost else []
        )
        cells = [*numbers, size(cost["table_bytes"])] if cost else ["-"] * 4
        rows.append([name, "-" if gain is None else f"{gain:+.1%}", *cells])
    head = ["method", f"gain, {metric_title(results['metrics'][0])}", "ms a step", "s", "dense", "tables"]
    return "what each gains over all tasks, and costs", head, rows


def _losses(results: Mapping[str, Any]) -> list[tuple[str, list[str], Rows]]:
    """Slices on which a method falls behind the reference, the worst first."""
    worse = [
        (part["difference"], name, task, label, part)
        for task, methods in results["tasks"].items()
        for name, found in methods.items()
        for label, part in found["slices"].items()
        if (part.get("difference") or 0.0) < 0
    ]
    if not worse:
        return []
    worse.sort(key=lambda one: one[:4])
    rows = [
        [name, task, _slice(label), f"{part['num_anchors']:,}", decimals(part["mean"]), f"{less:+.4f}"]
        for less, name, task, label, part in worse[:15]
    ]
    title = f"where a method falls behind {results['reference']}, {metric_title(results['metrics'][0])}"
    return [(title, ["method", "task", "slice", "anchors", "mean", "less"], rows)]


def _slice(label: str) -> str:
    """`target_training: cold` is told as `cold target`."""
    slicing, _, name = label.partition(": ")
    return f"{name} {slicing.partition('_')[0]}"


def verdicts(results: Mapping[str, Any]) -> list[str]:
    """A sentence per method and task: better, worse, or no difference."""
    metric, lines = results["metrics"][0], []
    for name in results["varied"]:
        if name == results["reference"]:
            continue
        told = []
        for task, methods in results["tasks"].items():
            beside = methods.get(name, {}).get("metrics", {}).get(metric, {}).get("beside_reference")
            if beside is None:
                continue
            interval = f"{beside['difference']:+.4f} ({beside['low']:+.4f} to {beside['high']:+.4f})"
            word = "no difference" if not _differs(beside) else "better" if beside["difference"] > 0 else "worse"
            told.append(f"{task}: {word}, {interval}")
        if told:
            lines.append(f"{name} beside {results['reference']}, {metric_title(metric)}: " + "; ".join(told))
    lines += [f"{one['method']}, seed {one['seed']}, failed: {one['why']}" for one in results["failed"]]
    return lines


def notes(results: Mapping[str, Any]) -> list[str]:
    """What the marks mean."""
    return [
        f"± standard deviation over {len(results['seeds'])} seeds; ▲ better or ▼ worse than {results['reference']}, "
        "≈ no difference that can be told (sign-flip test over anchors, values averaged over seeds, p < 0.05 after "
        "Holm's correction for all comparisons)",
        "gain: mean over tasks of the relative difference; s: milliseconds of a step times steps; dense: parameters",
    ]
