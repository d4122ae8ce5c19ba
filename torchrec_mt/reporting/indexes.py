"""Measured indexes as JSON, as a table for the terminal, and as sentences that recommend one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torchrec_mt.reporting.trimmed import Trimmed
from torchrec_mt.retrieval.index_grid import FLAT
from torchrec_mt.retrieval.indexes import DEPTH, Measured, Point, recommended

FORMAT = 2
"""Of indexes.json. Files without a format have one set of terms for all tasks."""


def entity_report(
    exact: Measured,
    found: Sequence[Measured],
    left_out: Mapping[str, str],
    terms: Mapping[str, Any],
    *,
    candidates: int,
    anchors: Mapping[str, int],
) -> dict[str, Any]:
    """One entity of `evaluation/indexes.json`.

    Args:
        terms: what was asked for, and of which machine; among them the `wish`. candidates: of the entity. anchors: of
            each task that asks for it.
    """
    return _recommending(
        {
            "candidates": candidates,
            "anchors": dict(anchors),
            "terms": {task: dict(terms) for task in anchors},
            "exact": asdict(exact),
            "settings": [asdict(one) for one in found],
            "left_out": dict(left_out),
        }
    )


def merged_report(
    earlier: Mapping[str, Any], report: Mapping[str, Any], entity_of: Mapping[str, str]
) -> dict[str, Any]:
    """`indexes.json` after a call: the tasks that it measured, and all others of the dataset as they stood there.

    What stood there of other settings, or of a catalogue of another size, goes with the call's entity.

    Args:
        earlier: the file so far. report: of the call. entity_of: the candidate entity of each task there is, in order;
            ENTITY@TASK where candidates have a vector per task.
    """
    entities = {}
    for name in dict.fromkeys(entity_of.values()):
        new, old = (one["entities"].get(name) for one in (report, earlier))
        if new and old and _settings_of(new) != _settings_of(old):
            old = None
        found = {
            task: next(one for one in (new, old) if one and task in one["anchors"])
            for task, entity in entity_of.items()
            if entity == name and any(one and task in one["anchors"] for one in (new, old))
        }
        if found:
            entities[name] = _joined(new or old, found)
    return {**report, "entities": entities}


def _settings_of(entity: Mapping[str, Any]) -> list[object]:
    return [entity["candidates"], *((one["factory"], one["build"], one["search"]) for one in entity["settings"])]


def _joined(base: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An entity with each task as it was found in one of the same settings."""

    def with_tasks(at: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, Any]:
        return {**at(base), "tasks": {task: at(entity)["tasks"][task] for task, entity in found.items()}}

    def setting(number: int) -> dict[str, Any]:
        return with_tasks(lambda entity: entity["settings"][number])

    return _recommending(
        {
            **base,
            "anchors": {task: entity["anchors"][task] for task, entity in found.items()},
            "terms": {task: entity["terms"][task] for task, entity in found.items()},
            "exact": with_tasks(lambda entity: entity["exact"]),
            "settings": [setting(number) for number in range(len(base["settings"]))],
        }
    )


def _recommending(entity: Mapping[str, Any]) -> dict[str, Any]:
    """With what to take for each task and for all of them."""
    wishes = {task: terms["wish"] for task, terms in entity["terms"].items()}
    found = [
        Measured(**{**one, "tasks": {task: Point(**point) for task, point in one["tasks"].items()}})
        for one in entity["settings"]
    ]
    return {
        **entity,
        "recommended": _name(recommended(found, wishes)),
        "recommended_for": {task: _name(recommended(found, {task: wish})) for task, wish in wishes.items()},
    }


def _name(setting: Measured | None) -> dict[str, str] | None:
    if setting is None:
        return None
    return {"factory": setting.factory, "build": setting.build, "search": setting.search}


def index_tables(report: Mapping[str, Any]) -> list[RenderableType]:
    """A table per entity of one call: exact retrieval, the flat index, and what nothing else beats."""
    return [Trimmed(_table(name, entity)) for name, entity in report["entities"].items()]


def _table(name: str, entity: Mapping[str, Any]) -> RenderableType:
    terms = next(iter(entity["terms"].values()))
    table = Table(header_style="dim", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("task anchors, index", overflow="fold")
    for column in ("@10", f"@{DEPTH}", "task's", "1 by 1/s", "batch/s", "MiB", "build s"):
        table.add_column(column, justify="right", no_wrap=True)
    for task, anchors in entity["anchors"].items():
        exact = entity["exact"]["tasks"][task]["task_recall_100"]
        table.add_row(f"[bold]{task}[/] [dim]{anchors:,}[/]", "", "", f"[dim]{exact:.4f}[/]")
        best = front(entity["settings"], task)
        flat = [one for one in entity["settings"] if one["factory"] == FLAT and one not in best]
        for one in [entity["exact"], *flat, *best]:
            table.add_row(f"{one['factory']} {one['search']}".rstrip(), *_cells(one, one["tasks"][task], exact))
    title = (
        f"{name}: {entity['candidates']:,} candidates, {terms['split']} split; of {len(entity['settings'])} "
        "settings, those that no other beats in recall and speed"
    )
    legend = (
        f"@10, @{DEPTH}: share of the exact best that is found; task's: change of the task's own Recall@{DEPTH}; "
        f"queries a second: 1 by 1 on one thread, in a batch on {terms['threads']}"
    )
    left_out = [Text(f"left out: {what}: {why}", style="dim") for what, why in entity["left_out"].items()]
    return Group(Text(title, style="bold"), table, Text(legend, style="dim"), *left_out)


def _cells(setting: Mapping[str, Any], point: Mapping[str, Any], exact: float) -> list[str]:
    return [
        f"{point['recall_10']:.4f}",
        f"{point['recall_100']:.4f}",
        f"{point['task_recall_100'] - exact:+.4f}",
        f"{point['one_by_one']:,.0f}",
        f"{point['batch']:,.0f}",
        f"{setting['bytes'] / 2**20:,.1f}",
        f"{setting['build_seconds']:,.1f}",
    ]


def front(settings: Sequence[Mapping[str, Any]], task: str) -> list[Mapping[str, Any]]:
    """The settings of `indexes.json` that no other beats in both recall (of 100) and speed (1 by 1), fastest first."""
    ordered = sorted(settings, key=lambda one: (-one["tasks"][task]["one_by_one"], -one["tasks"][task]["recall_100"]))
    kept: list[Mapping[str, Any]] = []
    for one in ordered:
        if not kept or one["tasks"][task]["recall_100"] > kept[-1]["tasks"][task]["recall_100"]:
            kept.append(one)
    return kept


def index_sentences(report: Mapping[str, Any]) -> list[str]:
    """What to take for the wished recall of one call: per task, and one index for all of an entity's tasks."""
    lines = []
    for name, entity in report["entities"].items():
        for task in entity["anchors"]:
            lines.append(f"{task}: {_advice(entity, entity['recommended_for'][task], [task])}")
        if len(entity["anchors"]) > 1:
            tasks = list(entity["anchors"])
            lines.append(f"all tasks of {name}: {_advice(entity, entity['recommended'], tasks)}")
    return lines


def _advice(entity: Mapping[str, Any], chosen: Mapping[str, str] | None, tasks: Sequence[str]) -> str:
    settings, wish = entity["settings"], entity["terms"][tasks[0]]["wish"]
    if chosen is None:
        nearest = max(settings, key=lambda one: _least(one, tasks))
        return (
            f"no setting finds {wish:g} of the exact best {DEPTH}; the nearest, {_words(nearest)}, "
            f"{_least(nearest, tasks):.4f}"
        )
    one = next(one for one in settings if all(one[key] == value for key, value in chosen.items()))
    flat = next(one for one in settings if one["factory"] == FLAT)
    advice = f"{_words(one)} finds {_least(one, tasks):.4f} of the exact best {DEPTH}"
    if one is flat:
        return f"{advice}: no faster setting finds {wish:g}"
    return f"{advice}, {_seconds(flat, tasks) / _seconds(one, tasks):.1f} times as fast as the flat index"


def _least(setting: Mapping[str, Any], tasks: Sequence[str]) -> float:
    return float(min(setting["tasks"][task]["recall_100"] for task in tasks))


def _seconds(setting: Mapping[str, Any], tasks: Sequence[str]) -> float:
    return float(sum(1 / setting["tasks"][task]["one_by_one"] for task in tasks))


def _words(setting: Mapping[str, Any]) -> str:
    """As FAISS takes them: factory string, then parameters; those of building in brackets."""
    return " ".join(
        part for part in (setting["factory"], setting["build"] and f"({setting['build']})", setting["search"]) if part
    )
