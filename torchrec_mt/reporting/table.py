"""An evaluation as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

_ORDER = ("random_order", "popularity", "bm25", "co_occurrence", "model", "oracle")
_COLUMNS = {"recall@10": "Recall@10", "recall@100": "Recall@100", "ndcg@10": "NDCG@10", "mrr@10": "MRR@10"}
_JUDGED_COLUMNS = {
    "condensed_ndcg@10": "judged NDCG@10",
    "ndcg@10": "NDCG@10",
    "bpref": "bpref",
    "unjudged@10": "unjudged@10",
}


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """Metrics per task and system, the best of all but the oracle in bold, and the share of the oracle's Recall@100."""
    title = f"{evaluation['split']} split, {evaluation['model']} model, ranked over the whole catalogue"
    if evaluation["max_anchors"]:
        title += f", at most {evaluation['max_anchors']:,} anchors a task"
    table = _empty(title, (*_COLUMNS.values(), "of oracle"))
    for task, result in evaluation["tasks"].items():
        _add_task(table, task, result)
    return table


def judged_table(evaluation: Mapping[str, Any]) -> Table | None:
    """Measures of the judged pools per task and system, random first; None where no task has such a pool."""
    pools = {task: result["judged"] for task, result in evaluation["tasks"].items() if "judged" in result}
    if not pools:
        return None
    table = _empty("judged pools: unjudged candidates left out, or counted", tuple(_JUDGED_COLUMNS.values()))
    for task, pool in pools.items():
        table.add_row(f"[bold]{task}[/] [dim]{pool['num_anchors']:,} anchors, {pool['num_judged']:,} judged pairs[/]")
        names = [name for name in _ORDER if name in pool["systems"]]
        for name in names:
            cells = [f"{pool['systems'][name][metric]:.4f}" for metric in _JUDGED_COLUMNS]
            table.add_row(f"  {name}", *cells, end_section=name == names[-1])
    return table


def _empty(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("task, system", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _add_task(table: Table, task: str, result: Mapping[str, Any]) -> None:
    systems = result["systems"]
    rivals = [name for name in systems if name != "oracle"]
    best = {metric: max((systems[name][metric] for name in rivals), default=0.0) for metric in _COLUMNS}
    ceiling = systems.get("oracle", {}).get("recall@100", 0.0)
    table.add_row(f"[bold]{task}[/] [dim]{result['num_anchors']:,} anchors[/]", end_section=not systems)
    names = [name for name in _ORDER if name in systems]
    for name in names:
        cells = []
        for metric in _COLUMNS:
            value = systems[name][metric]
            cells.append(f"[bold]{value:.4f}[/]" if name != "oracle" and value == best[metric] else f"{value:.4f}")
        share = f"{systems[name]['recall@100'] / ceiling:.0%}" if ceiling else "-"
        table.add_row(f"  {name}", *cells, share, end_section=name == names[-1])
