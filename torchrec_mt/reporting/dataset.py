"""A prepared dataset as tables for the terminal, from its manifest."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def dataset_tables(manifest: Mapping[str, Any]) -> list[Table]:
    """Entities, tasks and embedding tables of a manifest (as JSON)."""
    return [_entities(manifest), _tasks(manifest), _remarks(manifest), _embedding_tables(manifest)]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _entities(manifest: Mapping[str, Any]) -> Table:
    table = _table("entities", "entity", "count", "cold", "features", "cut bags")
    for name, entity in manifest["entities"].items():
        cut = sum(feature["truncated"] for feature in entity["features"].values())
        table.add_row(name, f"{entity['count']:,}", f"{entity['cold']:,}", str(len(entity["features"])), f"{cut:,}")
    return table


def _tasks(manifest: Mapping[str, Any]) -> Table:
    table = _table("pairs", "task", "anchor -> candidate", "train", "valid", "test")
    for name, task in manifest["tasks"].items():
        pairs = [f"{task['pairs'][split]:,}" for split in ("train", "valid", "test")]
        table.add_row(name, f"{task['anchor']} -> {task['candidate']}", *pairs)
    return table


def _remarks(manifest: Mapping[str, Any]) -> Table:
    """What was left out and what else there is to know, a line each."""
    table = _table("left out, and notes", "task", "", "what")
    for name, task in manifest["tasks"].items():
        for reason, count in task["rejected"].items():
            table.add_row(name, f"{count:,}", reason)
        for key, value in task["notes"].items():
            table.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value), key.replace("_", " "))
    return table


def _embedding_tables(manifest: Mapping[str, Any]) -> Table:
    table = _table("embedding tables", "table", "rows")
    for name, rows in manifest["tables"].items():
        table.add_row(name, f"{rows:,}")
    return table


def mined_table(about: Mapping[str, Any]) -> Table:
    """What `torchrec-mt mine` found, from `mined.json`."""
    table = _table("hard negatives", "task", "anchors", "negatives", "per anchor")
    for name, task in about["tasks"].items():
        share = task["negatives"] / max(1, task["anchors"])
        table.add_row(name, f"{task['anchors']:,}", f"{task['negatives']:,}", f"{share:.1f}")
    return table
