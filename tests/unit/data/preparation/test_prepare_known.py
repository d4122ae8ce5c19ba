"""Known pairs, named negatives, label roles and anchor frequencies, by hand and against a slow twin."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from tests.raw_shop import (
    CLICKS,
    given,
    ids,
    known,
    make_schema,
    named_links,
    negatives,
    pairs,
    run,
    with_pairs,
)
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.schema import GivenPairs, GroupSplit, Schema, Task

# Training (time < 50): q1 a, a, b; q2 c, d, c. Validation: q1 b. Test: q2 d.
ESCI = {**CLICKS, "esci": ["E", "S", "I", "E", "S", "C", "E", "E"]}
ROLES: dict[str, float | Literal["negative", "ignore"]] = {"E": 3.0, "S": "ignore", "C": "negative", "I": "negative"}
SHOWN = {**CLICKS, "shown": [["b", "c"], ["e", "e", None], None, [], ["a", "ghost"], ["d", "a"], ["d"], ["b"]]}


def labelled(**settings: Any) -> Schema:
    return with_pairs(given(label="esci", roles=ROLES, **settings))


def test_known_pairs_are_those_of_training_both_ways(tmp_path: Path) -> None:
    dataset = run(tmp_path, make_schema())
    assert known(dataset, "search") == {"q1": ["a", "b"], "q2": ["c", "d"]}
    back = named_links(dataset, dataset.known_anchors("search"), "product", "query")
    assert back == {"a": ["q1"], "b": ["q1"], "c": ["q2"], "d": ["q2"]}
    assert known(dataset, "together") == {"a": ["b", "c"], "b": ["a", "c"], "c": ["a", "b"]}
    assert dataset.known_candidates("search").values.dtype == np.int32
    assert len(dataset.known_candidates("together").offsets) == len(ids(dataset, "product")) + 1


def test_anchor_frequencies_are_pairs_per_anchor(tmp_path: Path) -> None:
    clicks = {"query": ["q1", "q1", "q1", "q2", "q2"], "sku": ["a", "a", "b", "c", "d"], "time": [1, 2, 3, 4, 90]}
    dataset = run(tmp_path, make_schema(), clicks=clicks)
    assert dict(zip(ids(dataset, "query"), dataset.anchor_frequencies("search").tolist(), strict=True)) == {
        "q1": 2,
        "q2": 1,
    }
    assert dataset.anchor_frequencies("together").tolist() == dataset.frequencies("together").tolist()


def test_shown_and_not_chosen(tmp_path: Path) -> None:
    # q1: b is clicked elsewhere, c and e stay. q2: d is clicked, a stays, 'ghost' is unknown. Later lists are unread.
    dataset = run(tmp_path, with_pairs(given(negatives="shown")), clicks=SHOWN)
    assert negatives(dataset, "search") == {"q1": ["c", "e"], "q2": ["a"]}
    assert dataset.manifest.tasks["search"].notes == {"named_negatives": 3, "unknown_in_negatives": 1}
    assert known(dataset, "search") == {"q1": ["a", "b"], "q2": ["c", "d"]}
    assert dataset.named_negatives("together") is None
    assert pairs(dataset, "search") == {("q1", "a"): 2, ("q1", "b"): 1, ("q2", "c"): 2, ("q2", "d"): 1}


def test_lists_that_name_nothing(tmp_path: Path) -> None:
    clicks = {**CLICKS, "shown": [[] for _ in CLICKS["sku"]]}
    dataset = run(tmp_path, with_pairs(given(negatives="shown")), clicks=clicks)
    assert negatives(dataset, "search") == {}
    assert dataset.manifest.tasks["search"].notes == {"named_negatives": 0}


def test_roles_of_labels(tmp_path: Path) -> None:
    # q1 a: E and S, so positive once. q1 b: I. q2 c: E and C, so positive once. q2 d: S.
    dataset = run(tmp_path, labelled(), clicks=ESCI)
    assert pairs(dataset, "search") == {("q1", "a"): 1, ("q2", "c"): 1}
    assert dataset.pairs("search", "train")["grade"].tolist() == [3.0, 3.0]
    assert (pairs(dataset, "search", "valid"), pairs(dataset, "search", "test")) == ({("q1", "b"): 1}, {("q2", "d"): 1})
    assert negatives(dataset, "search") == {"q1": ["b"]}
    assert known(dataset, "search") == {"q1": ["a"], "q2": ["c", "d"]}
    assert dataset.manifest.tasks["search"].notes == {"named_negatives": 1, "ignored_pairs": 1}
    assert flat(ignored(dataset)) == {("q2", "d")}
    assert dict(zip(ids(dataset, "product"), dataset.frequencies("search"), strict=True))["d"] == 0


def test_ignored_wins_over_negative_and_grades_are_the_highest(tmp_path: Path) -> None:
    clicks = {**CLICKS, "esci": ["E", "P", "I", "S", "I", "I", "C", "S"]}
    clicks = {**clicks, "sku": ["a", "a", "b", "b", "c", "c", "d", "d"], "query": ["q1"] * 8, "time": [1] * 8}
    dataset = run(tmp_path, with_pairs(given(label="esci", roles={**ROLES, "P": 0.1})), clicks=clicks)
    assert pairs(dataset, "search") == {("q1", "a"): 2}
    assert dataset.pairs("search", "train")["grade"].tolist() == [3.0]
    assert negatives(dataset, "search") == {"q1": ["c"]}
    assert known(dataset, "search") == {"q1": ["a", "b", "d"]}


def test_labels_without_a_role_and_null_labels_are_counted(tmp_path: Path) -> None:
    labels = [1, 1, 2, 1, 3, None, 1, 2]
    schema = with_pairs(given(label="n", roles={"1": 1.0}))
    dataset = run(tmp_path, schema, clicks={**CLICKS, "n": labels})
    assert dataset.manifest.tasks["search"].rejected == {"label without a role": 3, "no label": 1}
    assert pairs(dataset, "search") == {("q1", "a"): 2, ("q2", "c"): 1}
    assert dataset.named_negatives("search") is None


def test_one_source_serves_two_tasks_with_other_roles(tmp_path: Path) -> None:
    schema = labelled()
    alike = replace(schema.tasks["search"], pairs=given(label="esci", roles={"S": 1.0}))
    judged = replace(schema.tasks["search"], trained_as="search")
    schema = replace(schema, tasks={**schema.tasks, "alike": alike, "judged": judged})
    dataset = run(tmp_path, schema, clicks=ESCI)
    assert pairs(dataset, "alike") == {("q1", "a"): 1, ("q2", "d"): 1}
    assert known(dataset, "alike") == {"q1": ["a"], "q2": ["d"]}
    assert pairs(dataset, "judged", "test") == {("q2", "d"): 1}
    assert sorted(path.name for path in (dataset.path / "known").iterdir()) == ["alike", "search", "together"]
    assert [path.name for path in (dataset.path / "negatives").iterdir()] == ["search"]


def test_an_anchor_is_not_its_own_negative(tmp_path: Path) -> None:
    views = {"seen": ["a", "b"], "sku": ["b", "c"], "time": [1, 1], "shown": [["a", "c"], ["b", "a"]]}
    rule = GivenPairs(
        kind="given", path="views.parquet", anchor="seen", candidate="sku", time="time", negatives="shown"
    )
    schema = make_schema()
    schema = replace(schema, tasks={**schema.tasks, "alike": Task(anchor="product", candidate="product", pairs=rule)})
    dataset = run(tmp_path, schema, views=views)
    assert negatives(dataset, "alike") == {"a": ["c"], "b": ["a"]}


def test_labels_from_csv(tmp_path: Path) -> None:
    expected = run(tmp_path / "a", labelled(), clicks=ESCI)
    lines = [",".join(map(str, row)) for row in zip(*ESCI.values(), strict=True)]
    (tmp_path / "b/raw").mkdir(parents=True)
    (tmp_path / "b/raw/clicks.csv").write_text("\n".join(["query,sku,time,esci", *lines]) + "\n")
    dataset = run(tmp_path / "b", labelled(path="clicks.csv"))
    assert dataset.manifest.digest == expected.manifest.digest


def test_the_digest_sees_roles_and_negatives_but_not_the_order_of_rows(tmp_path: Path) -> None:
    schema = labelled(negatives="shown")
    clicks = {**SHOWN, "esci": ESCI["esci"]}

    def digest(folder: str, **changed: list[Any]) -> str:
        return run(tmp_path / folder, schema, clicks={**clicks, **changed}).manifest.digest

    plain = digest("plain")
    assert digest("backwards", **{name: rows[::-1] for name, rows in clicks.items()}) == plain
    assert digest("ignored", esci=[*ESCI["esci"][:2], "S", *ESCI["esci"][3:]]) != plain
    assert digest("shown", shown=[["e"], *SHOWN["shown"][1:]]) != plain


def slow_marks(
    rows: list[dict[str, Any]], products: set[str]
) -> tuple[set[tuple[str, str]], set[tuple[str, str]], set[tuple[str, str]], int]:
    """Positive, known and negative pairs of training by the schema's docstring, and unknown entries of lists."""
    train = [row for row in rows if row["time"] < 50 and row["esci"] in ROLES]
    marked: dict[Any, set[tuple[str, str]]] = {"positive": set(), "ignore": set(), "negative": set()}
    unknown = 0
    for row in train:
        role = ROLES[row["esci"]]
        marked[role if isinstance(role, str) else "positive"].add((row["query"], row["sku"]))
        for shown in row["shown"] or []:
            unknown += shown is not None and shown not in products
            if shown in products:
                marked["negative"].add((row["query"], shown))
    known = marked["positive"] | marked["ignore"]
    return marked["positive"], known, marked["negative"] - known, unknown


def flat(links: dict[str, list[str]]) -> set[tuple[str, str]]:
    return {(owner, linked) for owner, row in links.items() for linked in row}


@pytest.mark.parametrize("seed", range(5))
def test_random_shops_equal_the_slow_twin(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    skus = [f"p{n}" for n in range(25)]

    def shown() -> list[str | None] | None:
        names = [*skus, "ghost", None]
        return None if rng.random() < 0.3 else [names[n] for n in rng.integers(0, len(names), rng.integers(0, 6))]

    rows = [
        {
            "query": f"q{rng.integers(8)}",
            "sku": skus[rng.integers(25)],
            "time": int(rng.choice([1, 2, 60, 95])),
            "esci": "ESCIX"[rng.integers(5)],
            "shown": shown(),
        }
        for _ in range(120)
    ]
    dataset = run(
        tmp_path,
        labelled(negatives="shown"),
        clicks={name: [row[name] for row in rows] for name in rows[0]},
        queries={"query": [f"q{n}" for n in range(8)], "words": ["w"] * 8},
        products={"sku": [*skus, *"abcde"], "title": ["t"] * 30, "kind": ["k"] * 30, "price": [1.0] * 30},
    )
    positive, known_pairs, negative, unknown = slow_marks(rows, set(skus))
    assert set(pairs(dataset, "search")) == positive
    assert flat(known(dataset, "search")) == known_pairs
    back = named_links(dataset, dataset.known_anchors("search"), "product", "query")
    assert {(query, sku) for sku, query in flat(back)} == known_pairs
    assert flat(negatives(dataset, "search")) == negative
    assert flat(ignored(dataset)) == known_pairs - positive
    notes = {"named_negatives": len(negative), "ignored_pairs": len(known_pairs - positive)}
    assert dataset.manifest.tasks["search"].notes == {**notes, "unknown_in_negatives": unknown}
    assert all(ascending(links) for links in every_link(dataset))


def ignored(dataset: PreparedDataset) -> dict[str, list[str]]:
    links = dataset.ignored_candidates("search")
    assert links is not None
    return named_links(dataset, links, "query", "product")


def every_link(dataset: PreparedDataset) -> list[Any]:
    found = [dataset.named_negatives("search")]
    return found + [
        links(task) for links in (dataset.known_candidates, dataset.known_anchors) for task in ("search", "together")
    ]


def ascending(links: Any) -> bool:
    owner_L, id_L = links.of(np.arange(len(links.offsets) - 1))
    return bool(((np.diff(id_L) > 0) | (np.diff(owner_L) > 0)).all())


def test_a_split_by_group_divides_lists_too(tmp_path: Path) -> None:
    clicks = {
        "query": ["q1"] * 60,
        "sku": ["a"] * 60,
        "session": [f"s{n}" for n in range(60)],
        "time": [1] * 60,
        "shown": [["b"]] * 59 + [["c"]],
    }
    baskets = {"basket": ["1"] * 2, "sku": ["a", "b"], "line": [0, 1], "time": [1, 1], "session": ["s", "s"]}
    shares = {"valid_share": 0.2, "test_share": 0.2}
    found = set()
    for salt in "abcdefgh":
        split = GroupSplit(kind="group", column=("session",), salt=salt, **shares)
        schema = with_pairs(given(negatives="shown", time=None), split=split)
        schema = replace(schema, tasks={"search": schema.tasks["search"]})
        dataset = run(tmp_path / salt, schema, clicks=clicks, baskets=baskets)
        found.add(tuple(negatives(dataset, "search")["q1"]))
    assert found == {("b",), ("b", "c")}, "the one session that shows c is in training for some salts only"
