"""Pairs by hand: given, from groups, lift, direction, minus, splits, frequencies and order of entities."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.raw_shop import (
    BASKETS,
    CLICKS,
    SPLIT,
    by_group,
    given,
    groups,
    ids,
    known,
    make_schema,
    pairs,
    run,
    with_pairs,
)
from torchrec_mt.schema import GivenPairs, GroupSplit, Task, TimeSplit

BOTH = {("a", "b"): 1.5, ("b", "a"): 1.5, ("a", "c"): 0.5, ("c", "a"): 0.5, ("b", "c"): 0.5, ("c", "b"): 0.5}


def test_given_pairs_are_split_by_time_and_counted(tmp_path: Path) -> None:
    dataset = run(tmp_path, make_schema())
    assert pairs(dataset, "search") == {("q1", "a"): 2, ("q1", "b"): 1, ("q2", "c"): 2, ("q2", "d"): 1}
    assert pairs(dataset, "search", "valid") == {("q1", "b"): 1}
    assert pairs(dataset, "search", "test") == {("q2", "d"): 1}


def test_a_pair_of_a_group_of_s_items_counts_one_over_s_minus_one(tmp_path: Path) -> None:
    dataset = run(tmp_path, make_schema())
    assert pairs(dataset, "together") == BOTH
    assert pairs(dataset, "together", "valid") == {("a", "c"): 1, ("c", "a"): 1}


def test_lift_by_hand(tmp_path: Path) -> None:
    # n(a,b) = 3/2, n(a) = n(b) = 2, n(c) = 1, N = 5: lift(a,b) = 1.875, lift(a,c) = lift(b,c) = 0.5 * 5 / 2 = 1.25.
    dataset = run(tmp_path, with_pairs(groups(min_lift=1.875)))
    assert set(pairs(dataset, "together")) == {("a", "b"), ("b", "a")}


def test_support_and_group_size(tmp_path: Path) -> None:
    dataset = run(tmp_path, with_pairs(groups(min_support=2)))
    assert set(pairs(dataset, "together")) == {("a", "b"), ("b", "a")}
    small = run(tmp_path / "small", with_pairs(groups(max_group_size=2)))
    assert pairs(small, "together") == {("a", "b"): 1, ("b", "a"): 1}
    assert sum(small.manifest.tasks["together"].rejected.values()) == 1


def test_forward_keeps_the_order_of_the_group(tmp_path: Path) -> None:
    # Basket 1: a, b. Basket 2: a, c, b.
    dataset = run(tmp_path, with_pairs(groups(direction="forward", order="line")))
    assert pairs(dataset, "together") == {("a", "b"): 1.5, ("a", "c"): 0.5, ("c", "b"): 0.5}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [({"same": "kind"}, {("a", "b"), ("b", "a")}), ({"different": "kind"}, set(BOTH) - {("a", "b"), ("b", "a")})],
)
def test_same_and_different(tmp_path: Path, rule: dict[str, str], expected: set[tuple[str, str]]) -> None:
    dataset = run(tmp_path, with_pairs(groups(**rule)))
    assert set(pairs(dataset, "together")) == expected


def test_minus_takes_pairs_of_another_task_in_either_direction(tmp_path: Path) -> None:
    views = {"session": ["1", "1"], "sku": ["b", "a"], "line": [0, 1], "time": [3, 3]}
    schema = with_pairs(groups(minus=("alike",)))
    alike = groups(path="views.parquet", group=("session",), direction="forward", order="line")
    task = Task(anchor="product", candidate="product", pairs=alike)
    dataset = run(tmp_path, replace(schema, tasks={**schema.tasks, "alike": task}), views=views)
    assert set(pairs(dataset, "alike")) == {("b", "a")}
    assert set(pairs(dataset, "together")) == set(BOTH) - {("a", "b"), ("b", "a")}


def test_quantiles_of_all_events_make_the_cut(tmp_path: Path) -> None:
    clicks = {"query": ["q1"] * 10, "sku": ["a", "b", "c", "d", "e"] * 2, "time": list(range(10))}
    baskets = {"basket": ["1"] * 10, "sku": ["a", "b"] * 5, "line": list(range(10)), "time": list(range(10))}
    split = TimeSplit(kind="time", valid_share=0.2, test_share=0.3)
    dataset = run(tmp_path, make_schema(split=split), clicks=clicks, baskets=baskets)
    counts = dataset.manifest.tasks["search"].pairs
    assert counts == {"train": 5, "valid": 2, "test": 3}


def test_a_group_never_lies_on_two_sides(tmp_path: Path) -> None:
    sessions = [f"s{n}" for n in range(200) for _ in range(3)]
    skus = ["a", "b", "c", "d", "e"]
    clicks = {
        "query": [f"q{1 + n % 2}" for n in range(600)],
        "sku": [skus[(7 * n) % 5] for n in range(600)],
        "session": sessions,
        "time": list(range(600)),
    }
    baskets = {"basket": sessions, "session": sessions, "sku": clicks["sku"], "line": [0] * 600, "time": [0] * 600}
    split = GroupSplit(kind="group", column=("session",), valid_share=0.2, test_share=0.2)
    dataset = run(tmp_path, by_group(make_schema(), split), clicks=clicks, baskets=baskets)
    counts = dataset.manifest.tasks["search"].pairs
    assert min(counts.values()) > 0
    again = run(tmp_path / "salted", by_group(make_schema(), replace(split, salt="x")), clicks=clicks, baskets=baskets)
    assert again.manifest.digest != dataset.manifest.digest


def test_grade_0_is_judged_but_never_trained(tmp_path: Path) -> None:
    clicks = {**CLICKS, "w": [0.0, 2.0, 0.0, 1.0, 3.0, 1.0, 0.0, 0.0]}
    schema = with_pairs(given(grade="w", min_grade=0.0))
    dataset = run(tmp_path, schema, clicks=clicks)
    # q1-a stands twice in training, once with grade 0; q1-b only so.
    assert pairs(dataset, "search") == {("q1", "a"): 1, ("q2", "c"): 2, ("q2", "d"): 1}
    assert pairs(dataset, "search", "valid") == {("q1", "b"): 1}
    assert dataset.pairs("search", "valid")["grade"].tolist() == [0.0]
    assert pairs(dataset, "search", "test") == {("q2", "d"): 1}
    assert dataset.manifest.tasks["search"].rejected == {"grade 0 in training": 2}
    assert dataset.frequencies("search").sum() == 3
    assert known(dataset, "search") == {"q1": ["a"], "q2": ["c", "d"]}


def test_entities_stand_by_training_frequency_then_id(tmp_path: Path) -> None:
    dataset = run(tmp_path, make_schema())
    # Training pairs that hold it: a: 1 click pair + 4, b: 1 + 4, c: 1 + 4, d: 1, e: 0.
    assert ids(dataset, "product") == ["a", "b", "c", "d", "e"]
    assert dataset.train_counts("product").tolist() == [5, 5, 5, 1, 0]
    assert dataset.manifest.entities["product"].cold == 1
    assert dataset.frequencies("search").tolist() == [1, 1, 1, 1, 0]


def test_an_evaluated_task_adds_nothing_to_training(tmp_path: Path) -> None:
    schema = make_schema()
    extra = Task(anchor="product", candidate="product", pairs=groups(), trained_as="together")
    dataset = run(tmp_path, replace(schema, tasks={**schema.tasks, "raw": extra}))
    assert dataset.train_counts("product").tolist() == [5, 5, 5, 1, 0]
    assert dataset.manifest.tasks["raw"].trained_as == "together"


def test_grades_and_weights(tmp_path: Path) -> None:
    judged = {**CLICKS, "grade": [3.0, 1.0, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0], "w": [0.5] * 8}
    rule = GivenPairs(
        kind="given", path="clicks.parquet", anchor="query", candidate="sku", time="time", grade="grade", weight="w"
    )
    dataset = run(tmp_path, with_pairs(rule), clicks=judged)
    assert set(pairs(dataset, "search")) == {("q1", "a"), ("q2", "c"), ("q2", "d")}
    rows = dataset.pairs("search", "train")
    assert sorted(rows["weight"].tolist()) == [0.5, 1.0, 1.0]
    assert rows["grade"].max() == 3.0


def test_unknown_ids_are_counted_and_too_many_refused(tmp_path: Path) -> None:
    clicks = {key: [*values, values[0]] for key, values in CLICKS.items()}
    clicks["sku"][-1] = "ghost"
    dataset = run(tmp_path, make_schema(max_rejected_share=0.2), clicks=clicks)
    assert dataset.manifest.tasks["search"].rejected["unknown candidate"] == 1


def test_permutation_check_counts_what_chance_gives(tmp_path: Path) -> None:
    # 60 baskets that always hold x and y of one of 30 pairs: real pairs pass the lift, dealt anew hardly any do.
    items = [f"i{n % 30}{side}" for n in range(300) for side in "xy"]
    baskets = {"basket": [str(n // 2) for n in range(600)], "sku": items, "line": [0, 1] * 300, "time": [1] * 600}
    products = {"sku": sorted(set(items)), "title": ["t"] * 60, "kind": ["k"] * 60, "price": [1.0] * 60}
    clicks = {"query": ["q1"], "sku": ["i0x"], "time": [1]}
    schema = with_pairs(groups(min_lift=10.0, min_support=5), split=SPLIT)
    dataset = run(tmp_path, schema, permutation_check=True, products=products, clicks=clicks, baskets=baskets)
    notes = dataset.manifest.tasks["together"].notes
    assert notes["real_pairs"] == 60
    assert float(notes["permuted_pairs"]) < 10


def test_order_of_raw_rows_does_not_matter(tmp_path: Path) -> None:
    def backwards(rows: dict[str, list]) -> dict[str, list]:
        return {key: values[::-1] for key, values in rows.items()}

    one = run(tmp_path / "one", make_schema())
    two = run(tmp_path / "two", make_schema(), clicks=backwards(CLICKS), baskets=backwards(BASKETS))
    assert one.manifest.digest == two.manifest.digest
