"""An evaluation as a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from torchrec_mt.retrieval.baselines.names import BASELINES

_COLUMNS = {"recall@10": "Recall@10", "recall@100": "Recall@100", "ndcg@10": "NDCG@10", "mrr@10": "MRR@10"}


def evaluation_table(evaluation: Mapping[str, Any]) -> Table:
    """Metrics per task and system, the best of all but the oracle in bold, and the share of the oracle's Recall@100."""
    title = f"{evaluation['split']} split, {evaluation['model']} model, ranked over the whole catalogue"
    if evaluation["max_anchors"]:
        title += f", at most {evaluation['max_anchors']:,} anchors a task"
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
    for name in (*_COLUMNS.values(), "of oracle"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, result in evaluation["tasks"].items():
        _add_task(table, task, result)
    return table


def _add_task(table: Table, task: str, result: Mapping[str, Any]) -> None:
    systems = result["systems"]
    rivals = [name for name in systems if name != "oracle"]
    best = {metric: max((systems[name][metric] for name in rivals), default=0.0) for metric in _COLUMNS}
    ceiling = systems.get("oracle", {}).get("recall@100", 0.0)
    table.add_row(f"[bold]{task}[/] [dim]{result['num_anchors']:,} anchors[/]", end_section=not systems)
    # Rivals in their own order, the model before what is made of it and before the ceiling.
    names = [name for name in (*BASELINES[:-2], "model", *BASELINES[-2:]) if name in systems]
    for name in names:
        cells = []
        for metric in _COLUMNS:
            value = systems[name][metric]
            cells.append(f"[bold]{value:.4f}[/]" if name != "oracle" and value == best[metric] else f"{value:.4f}")
        share = f"{systems[name]['recall@100'] / ceiling:.0%}" if ceiling else "-"
        table.add_row(f"  {name}", *cells, share, end_section=name == names[-1])
