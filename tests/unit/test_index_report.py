"""What `torchrec-mt indexes` writes and says, by hand."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from torchrec_mt.reporting.indexes import entity_report, front, index_sentences, index_tables
from torchrec_mt.retrieval.indexes import Measured, Point


def setting(factory: str, parameters: str, *, build: str = "", **points: tuple[float, float]) -> Measured:
    """A setting by (recall of 100, queries a second one by one) of each task."""
    tasks = {
        task: Point(recall_10=1.0, recall_100=recall, task_recall_100=recall / 2, one_by_one=rate, batch=2 * rate)
        for task, (recall, rate) in points.items()
    }
    return Measured(factory=factory, build=build, search=parameters, bytes=3 << 20, build_seconds=1.25, tasks=tasks)


EXACT = setting("exact", "", search=(1.0, 900.0), similar=(1.0, 900.0))
FLAT = setting("Flat", "", search=(1.0, 1000.0), similar=(1.0, 1000.0))
FAST = setting("IVF8,Flat", "nprobe=1", search=(0.5, 9000.0), similar=(0.97, 8000.0))
GOOD = setting("HNSW16", "efSearch=64", build="efConstruction=200", search=(0.96, 4000.0), similar=(0.98, 6000.0))
WORSE = setting("PQ2", "", search=(0.4, 500.0), similar=(0.4, 500.0))


def report(wish: float, *found: Measured, tasks: tuple[str, ...] = ("search", "similar")) -> dict[str, Any]:
    anchors = dict.fromkeys(tasks, 1234)
    entity = entity_report(EXACT, found, {"PQ9": "needs more"}, wish, candidates=20_000, anchors=anchors)
    whole = {"split": "test", "max_anchors": 0, "wish": wish, "threads": 2, "entities": {"product": entity}}
    return json.loads(json.dumps(whole))


def printed(shown: dict[str, Any], width: int) -> list[str]:
    plain = Console(file=io.StringIO(), width=width)
    for table in index_tables(shown):
        plain.print(table)
    return plain.file.getvalue().splitlines()


def test_recommended_per_task_and_over_all() -> None:
    entity = report(0.95, FLAT, FAST, GOOD, WORSE)["entities"]["product"]
    good = {"factory": "HNSW16", "build": "efConstruction=200", "search": "efSearch=64"}
    assert entity["recommended_for"] == {
        "search": good,
        "similar": {"factory": "IVF8,Flat", "build": "", "search": "nprobe=1"},
    }
    assert entity["recommended"] == good
    assert [one["factory"] for one in entity["settings"]] == ["Flat", "IVF8,Flat", "HNSW16", "PQ2"]
    assert entity["left_out"] == {"PQ9": "needs more"}


def test_sentences() -> None:
    good = "HNSW16 (efConstruction=200) efSearch=64 finds"
    assert index_sentences(report(0.95, FLAT, FAST, GOOD, WORSE)) == [
        f"search: {good} 0.9600 of the exact best 100, 4.0 times as fast as the flat index",
        "similar: IVF8,Flat nprobe=1 finds 0.9700 of the exact best 100, 8.0 times as fast as the flat index",
        # Two queries: 2 / 1000 seconds against 1 / 4000 + 1 / 6000.
        f"all tasks of product: {good} 0.9600 of the exact best 100, 4.8 times as fast as the flat index",
    ]
    assert index_sentences(report(0.99, FLAT, GOOD, tasks=("search",))) == [
        "search: Flat finds 1.0000 of the exact best 100: no faster setting finds 0.99"
    ]
    assert index_sentences(report(0.99, FAST, GOOD)) == [
        f"{task}: no setting finds 0.99 of the exact best 100; "
        f"the nearest, HNSW16 (efConstruction=200) efSearch=64, {share}"
        for task, share in (("search", "0.9600"), ("similar", "0.9800"), ("all tasks of product", "0.9600"))
    ]


def test_the_front_holds_what_nothing_beats() -> None:
    settings = report(0.95, FLAT, FAST, GOOD, WORSE)["entities"]["product"]["settings"]
    assert [one["factory"] for one in front(settings, "search")] == ["IVF8,Flat", "HNSW16", "Flat"]
    twice = [*settings, {**settings[1], "factory": "as good"}]
    assert [one["factory"] for one in front(twice, "search")] == ["IVF8,Flat", "HNSW16", "Flat"], "the first of equals"
    assert front([], "search") == []


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits(width: int) -> None:
    lines = printed(report(0.95, FLAT, FAST, GOOD, WORSE), width)
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    [row] = [line for line in lines if line.startswith("IVF8,Flat nprobe=1") and "0.97" in line]
    assert row.split()[2:] == ["1.0000", "0.9700", "-0.0150", "8,000", "16,000", "3.0", "1.2"]
    assert sum(line.startswith("Flat") for line in lines) == 2, "once a task"
    assert not any("PQ2" in line for line in lines)
    assert lines[-1] == "left out: PQ9: needs more"
