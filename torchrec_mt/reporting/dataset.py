"""A prepared dataset as tables for the terminal, from its manifest."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torchrec_mt.reporting.trimmed import Trimmed

_PERMUTATION = ("real_pairs", "permuted_pairs")


def dataset_tables(manifest: Mapping[str, Any]) -> list[RenderableType]:
    """Entities, tasks, what was left out, the permutation check and embedding tables of a manifest (as JSON).

    Only those that have something to say, a blank line between them.
    """
    parts = [
        _entities(manifest),
        _tasks(manifest),
        _left_out(manifest),
        _notes(manifest),
        _permutation(manifest),
        _embedding_tables(manifest),
    ]
    return [Group(part, Text()) for part in parts if part is not None]


def _table(*columns: str, left: int = 1) -> Table:
    """Columns of numbers behind `left` columns of words."""
    table = Table(header_style="dim", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    return table


def _titled(title: str, table: Table, *remarks: RenderableType) -> RenderableType | None:
    """The title is no part of the table: a narrow table would wrap it."""
    if not table.row_count:
        return None
    return Trimmed(Group(Text(title, style="bold"), table, *remarks))


def _entities(manifest: Mapping[str, Any]) -> RenderableType | None:
    table = _table("entity", "count", "cold", "features", "cut texts", "no vector")
    for name, entity in manifest["entities"].items():
        cut = sum(feature["truncated"] for feature in entity["features"].values())
        without = sum(feature.get("missing", 0) for feature in entity["features"].values())
        numbers = [entity["count"], entity["cold"], len(entity["features"]), cut, without]
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return _titled("entities", table)


def _tasks(manifest: Mapping[str, Any]) -> RenderableType | None:
    table = _table("task", "anchor -> candidate", "train", "valid", "test", left=2)
    for name, task in manifest["tasks"].items():
        pairs = [f"{task['pairs'][split]:,}" for split in ("train", "valid", "test")]
        table.add_row(name, f"{task['anchor']} -> {task['candidate']}", *pairs)
    return _titled("pairs", table)


def _left_out(manifest: Mapping[str, Any]) -> RenderableType | None:
    table = _table("task", "reason", "count", left=2)
    for name, task in manifest["tasks"].items():
        unknown = {key: value for key, value in task["notes"].items() if key.startswith("unknown_")}
        for reason, count in {**task["rejected"], **unknown}.items():
            table.add_row(name, reason.replace("_", " "), f"{count:,}")
    return _titled("left out", table)


def _notes(manifest: Mapping[str, Any]) -> RenderableType | None:
    table = _table("task", "what", "", left=2)
    for name, task in manifest["tasks"].items():
        for key, value in task["notes"].items():
            if key not in _PERMUTATION and not key.startswith("unknown_"):
                shown = f"{value:,}" if isinstance(value, int | float) else str(value)
                table.add_row(name, key.replace("_", " "), shown)
    return _titled("notes", table)


def _permutation(manifest: Mapping[str, Any]) -> RenderableType | None:
    """Pairs that each group rule finds, really and after shuffling: where chance finds as many, they mean little."""
    table, idle = _table("task", "real", "by chance", "share"), []
    for name, task in manifest["tasks"].items():
        if not all(key in task["notes"] for key in _PERMUTATION):
            continue
        real, chance = (task["notes"][key] for key in _PERMUTATION)
        table.add_row(name, f"{real:,}", f"{chance:,}", f"{chance / real:.0%}" if real else "-")
        idle += [name] if chance >= real else []
    warnings = [
        Text(
            f"warning: {name}: shuffled items give as many pairs as the real ones: its rule finds chance; "
            "raise min_lift or min_support",
            style="yellow",
        )
        for name in idle
    ]
    return _titled("permutation check: training pairs of the rule, before `minus`", table, *warnings)


def _embedding_tables(manifest: Mapping[str, Any]) -> RenderableType | None:
    table = _table("table", "rows")
    for name, rows in manifest["tables"].items():
        table.add_row(name, f"{rows:,}")
    return _titled("embedding tables", table)


def mined_table(about: Mapping[str, Any]) -> RenderableType:
    """What `torchrec-mt mine` found, from `mined.json`."""
    table = _table("task", "anchors", "negatives", "per anchor")
    for name, task in about["tasks"].items():
        share = task["negatives"] / max(1, task["anchors"])
        table.add_row(name, f"{task['anchors']:,}", f"{task['negatives']:,}", f"{share:.1f}")
    return Trimmed(Group(Text("hard negatives", style="bold"), table))


def exported_table(about: Mapping[str, Any]) -> RenderableType:
    """What `torchrec-mt export` wrote, from `export.json`."""
    table = _table("vectors", "tasks", "rows", "width")
    for space in about["spaces"]:
        table.add_row(space["folder"], ", ".join(space["tasks"]), f"{space['rows']:,}", str(space["width"]))
    return Trimmed(Group(Text("exported", style="bold"), table))
