"""Pairs from groups against a slow twin, and the corners of the rule by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tests.raw_shop import BASKETS, groups, make_schema, pairs, run, with_pairs
from torchrec_mt.schema import Task

Direction = Literal["both", "forward"]


def slow_pairs(
    lines: list[tuple[int, str, int]], *, largest: int, support: int, lift: float, direction: Direction
) -> dict[tuple[str, str], float]:
    """The rule as its docstring tells it: (group, item, order) lines -> count of each pair that passes."""
    baskets: dict[int, dict[str, int]] = {}
    for group, item, order in lines:
        members = baskets.setdefault(group, {})
        members[item] = min(order, members.get(item, order))
    usable = [members for members in baskets.values() if 2 <= len(members) <= largest]
    number = {item: sum(item in members for members in usable) for _, item, _ in lines}
    found = {}
    for a in number:
        for b in number:
            holding = [
                1 / (len(members) - 1)
                for members in usable
                if a != b and a in members and b in members and (direction == "both" or members[a] < members[b])
            ]
            if len(holding) >= support:
                sides = 2 if direction == "forward" else 1
                if sides * sum(holding) * sum(number.values()) / (number[a] * number[b]) >= lift:
                    found[a, b] = sum(holding)
    return found


@pytest.mark.parametrize("direction", ["both", "forward"])
def test_pairs_equal_the_slow_twin(tmp_path: Path, direction: Direction) -> None:
    rng = np.random.default_rng(5)
    group, order = rng.integers(0, 40, 240).tolist(), rng.integers(0, 5, 240).tolist()
    item = ["abcde"[n] for n in rng.integers(0, 5, 240)]
    expected = slow_pairs(
        list(zip(group, item, order, strict=True)), largest=4, support=3, lift=1.25, direction=direction
    )
    assert 0 < len(expected) < 20, "the thresholds must cut"
    rule = groups(max_group_size=4, min_support=3, min_lift=1.25, direction=direction)
    if direction == "forward":
        rule = replace(rule, order="line")
    baskets = {"basket": group, "sku": item, "line": order, "time": [1] * 240}
    found = pairs(run(tmp_path, with_pairs(rule), baskets=baskets), "together")
    assert found == pytest.approx(expected, rel=1e-6)


def test_repeated_lines_of_a_basket_count_once(tmp_path: Path) -> None:
    once = run(tmp_path / "once", make_schema())
    thrice = run(tmp_path / "thrice", make_schema(), baskets={name: rows * 3 for name, rows in BASKETS.items()})
    assert pairs(thrice, "together") == pairs(once, "together")


def test_items_without_a_value_are_neither_same_nor_different(tmp_path: Path) -> None:
    products = {"sku": list("abcd"), "title": ["t"] * 4, "kind": ["x", "x", "y", None], "price": [1.0] * 4}
    baskets = {"basket": [1] * 4, "sku": list("abcd"), "line": [0] * 4, "time": [1] * 4}
    clicks = {"query": ["q1"], "sku": ["a"], "time": [1]}
    for rule, expected in (({"same": "kind"}, {"ab", "ba"}), ({"different": "kind"}, {"ac", "ca", "bc", "cb"})):
        folder = tmp_path / next(iter(rule))
        dataset = run(folder, with_pairs(groups(**rule)), products=products, baskets=baskets, clicks=clicks)
        found = pairs(dataset, "together")
        assert {a + c for a, c in found} == expected
        assert set(found.values()) == {np.float32(1 / 3)}, "a basket of four counts 1/3, whatever is compared"


def test_minus_looks_at_this_part_and_earlier_ones(tmp_path: Path) -> None:
    # Times: 1 is training, 60 validation, 95 test.
    bought = [("ac", 1), ("ab", 60), ("cd", 60), ("bc", 60), ("bc", 95), ("ad", 95), ("de", 95)]
    viewed = [("ab", 1), ("bc", 60), ("de", 95)]

    def lines(rows: list[tuple[str, int]]) -> dict[str, list]:
        flat = [(n, item, time) for n, (items, time) in enumerate(rows) for item in items]
        basket, sku, time = (list(column) for column in zip(*flat, strict=True))
        return {"basket": basket, "sku": sku, "line": [0] * len(flat), "time": time}

    schema = with_pairs(groups(minus=("alike",)))
    alike = Task(anchor="product", candidate="product", pairs=groups(path="views.parquet"))
    schema = replace(schema, tasks={"alike": alike, **schema.tasks})
    dataset = run(tmp_path, schema, baskets=lines(bought), views=lines(viewed))
    assert set(pairs(dataset, "together")) == {("a", "c"), ("c", "a")}
    assert set(pairs(dataset, "together", "valid")) == {("c", "d"), ("d", "c")}
    assert set(pairs(dataset, "together", "test")) == {("a", "d"), ("d", "a")}
    assert dataset.manifest.tasks["together"].rejected["pair of a task in minus"] == 8


def test_groups_are_formed_within_a_part(tmp_path: Path) -> None:
    baskets = {"basket": [1] * 4, "sku": list("abcd"), "line": [0] * 4, "time": [1, 2, 60, 61]}
    dataset = run(tmp_path, make_schema(), baskets=baskets)
    assert set(pairs(dataset, "together")) == {("a", "b"), ("b", "a")}
    assert set(pairs(dataset, "together", "valid")) == {("c", "d"), ("d", "c")}
