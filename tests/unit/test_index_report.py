"""What `torchrec-mt indexes` writes and says, by hand."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from torchrec_mt.reporting.indexes import entity_report, front, index_sentences, index_tables, merged_report
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
FLAT_OF_SEARCH = setting("Flat", "", search=(1.0, 1000.0))
WORSE = setting("PQ2", "", search=(0.4, 500.0), similar=(0.4, 500.0))


def report(wish: float, *found: Measured, tasks: tuple[str, ...] = ("search", "similar")) -> dict[str, Any]:
    anchors = dict.fromkeys(tasks, 1234)
    terms = {"split": "test", "max_anchors": 0, "wish": wish, "threads": 2}
    entity = entity_report(EXACT, found, {"PQ9": "needs more"}, terms, candidates=20_000, anchors=anchors)
    return json.loads(json.dumps({"entities": {"product": entity}}))


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


def terms(wish: float, split: str = "test") -> dict[str, Any]:
    return {"split": split, "max_anchors": 0, "wish": wish, "threads": 2}


def of_search(*found: Measured, wish: float = 0.95, candidates: int = 20_000) -> dict[str, Any]:
    """A later call, of `search` on the validation split."""
    exact = setting("exact", "", search=(1.0, 800.0))
    entity = entity_report(exact, found, {}, terms(wish, "valid"), candidates=candidates, anchors={"search": 7})
    return json.loads(json.dumps({"format": 2, "entities": {"product": entity}}))


def points(entity: dict[str, Any], task: str) -> list[float]:
    return [one["tasks"][task]["recall_100"] for one in entity["settings"]]


ENTITY_OF = {"search": "product", "similar": "product"}


def test_what_was_not_measured_again_stays() -> None:
    earlier = report(0.95, FLAT, FAST, GOOD)
    slower = [setting("Flat", "", search=(1.0, 10.0)), setting("IVF8,Flat", "nprobe=1", search=(0.99, 90.0))]
    slower.append(setting("HNSW16", "efSearch=64", build="efConstruction=200", search=(0.97, 20.0)))
    call = of_search(*slower, wish=0.99)
    whole = merged_report(earlier, call, ENTITY_OF)
    entity = whole["entities"]["product"]
    assert whole["format"] == 2
    assert entity["anchors"] == {"search": 7, "similar": 1234}
    assert entity["terms"] == {"search": terms(0.99, "valid"), "similar": terms(0.95)}
    assert points(entity, "search") == [1.0, 0.99, 0.97]
    assert points(entity, "similar") == [1.0, 0.97, 0.98]
    assert [entity["exact"]["tasks"][task]["one_by_one"] for task in entity["anchors"]] == [800.0, 900.0]
    fast = {"factory": "IVF8,Flat", "build": "", "search": "nprobe=1"}
    assert entity["recommended_for"] == {"search": fast, "similar": fast}
    assert entity["recommended"] == fast, "each task by its own wish"
    assert merged_report(whole, call, ENTITY_OF) == whole
    assert merged_report({"entities": {}}, earlier, ENTITY_OF) == earlier


def test_what_cannot_stand_beside_it_goes() -> None:
    earlier, call = report(0.95, FLAT, FAST), of_search(FLAT_OF_SEARCH)
    assert list(merged_report(earlier, call, ENTITY_OF)["entities"]["product"]["anchors"]) == ["search"], "settings"
    earlier, call = report(0.95, FLAT), of_search(FLAT_OF_SEARCH, candidates=19_999)
    assert list(merged_report(earlier, call, ENTITY_OF)["entities"]["product"]["anchors"]) == ["search"], "catalogue"
    earlier, call = report(0.95, FLAT), of_search(FLAT_OF_SEARCH)
    gone = {"search": "product", "alike": "product"}
    assert list(merged_report(earlier, call, gone)["entities"]["product"]["anchors"]) == ["search"], "no such task now"


def test_other_entities_stay_as_long_as_their_tasks() -> None:
    earlier, call = report(0.95, FLAT), of_search(FLAT_OF_SEARCH)
    earlier["entities"]["brand"] = earlier["entities"].pop("product")
    entity_of = {"similar": "brand", "search": "product"}
    entities = merged_report(earlier, call, entity_of)["entities"]
    assert {name: list(entity["anchors"]) for name, entity in entities.items()} == {
        "brand": ["similar"],
        "product": ["search"],
    }
    assert points(entities["brand"], "similar") == [1.0]
    assert list(merged_report(earlier, call, {"search": "product"})["entities"]) == ["product"]


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
