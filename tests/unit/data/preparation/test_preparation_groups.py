"""Pairs derived from groups, by hand."""

import numpy as np
import pytest

from torchrec_mt.schema import Task

# Baskets 1: a b, 2: a b c, 3: a c, 4: d e. Groups of an item: a 3, b 2, c 2, d 1, e 1; their sum is 9.
# Counts 1 / (s - 1): ab 1 + 1/2, ac 1/2 + 1, bc 1/2, de 1. Lift = count * 9 / (n n'):
#   ab 1.5 * 9 / 6 = 2.25   ac 2.25   bc .5 * 9 / 4 = 1.125   de 9
BASKETS = {"g": [1, 1, 2, 2, 2, 3, 3, 4, 4], "i": list("ababcacde"), "t": [1] * 9}


def both(*names: str) -> set[tuple[str, str]]:
    return {(x, y) for x, y in names} | {(y, x) for x, y in names}


def test_counts_are_adjusted_for_size(shop, group_rule):
    shop.write("baskets.parquet", BASKETS)
    pairs = shop.pairs(shop.prepare(shop.schema(group_rule())).dataset)
    assert pairs.keys() == both("ab", "ac", "bc", "de")
    assert {pair: row["count"] for pair, row in pairs.items() if pair < pair[::-1]} == {
        ("a", "b"): 1.5, ("a", "c"): 1.5, ("b", "c"): 0.5, ("d", "e"): 1.0,
    }  # fmt: skip
    assert all(row["weight"] == 1 and row["grade"] == 1 for row in pairs.values())


@pytest.mark.parametrize(
    ("least", "kept"),
    [(1.125, ("ab", "ac", "bc", "de")), (1.126, ("ab", "ac", "de")), (2.25, ("ab", "ac", "de")), (9, ("de",))],
)
def test_lift(shop, group_rule, least, kept):
    shop.write("baskets.parquet", BASKETS)
    assert shop.pairs(shop.prepare(shop.schema(group_rule(min_lift=least))).dataset).keys() == both(*kept)


def test_support_counts_groups_not_rows(shop, group_rule):
    repeated = {name: values * 3 for name, values in BASKETS.items()}
    shop.write("baskets.parquet", repeated)
    assert shop.pairs(shop.prepare(shop.schema(group_rule(min_support=2))).dataset).keys() == both("ab", "ac")


def test_large_groups_are_left_out_and_counted(shop, group_rule):
    shop.write("baskets.parquet", BASKETS)
    dataset = shop.prepare(shop.schema(group_rule(max_group_size=2))).dataset
    assert shop.pairs(dataset).keys() == both("ab", "ac", "de")
    assert dataset.manifest.tasks["task"].rejected == {"group too large": 1}


def test_forward_keeps_the_order(shop, group_rule):
    # Group 1: a then b (b again later); 2: b then a; 3: a then b; 4: a and b at once.
    table = {"g": [1, 1, 1, 2, 2, 3, 3, 4, 4], "i": list("abbbaabab"), "o": [1, 2, 3, 1, 2, 5, 6, 7, 7], "t": [1] * 9}
    shop.write("baskets.parquet", table)
    rule = group_rule(direction="forward", order="o")
    pairs = shop.pairs(shop.prepare(shop.schema(rule)).dataset)
    assert {pair: row["count"] for pair, row in pairs.items()} == {("a", "b"): 2.0, ("b", "a"): 1.0}
    # n_a = n_b = 4, total 8: lift(a, b) = 2 * 2 * 8 / 16 = 2, lift(b, a) = 1.
    for least, kept in ((2, {("a", "b")}), (1, {("a", "b"), ("b", "a")})):
        rule = group_rule(direction="forward", order="o", min_lift=least)
        assert shop.pairs(shop.prepare(shop.schema(rule)).dataset).keys() == kept


def test_same_and_different_leave_out_items_without_a_value(shop, group_rule):
    shop.write("items.parquet", {"id": list("abcde"), "leaf": ["x", "x", "y", None, "y"]})
    shop.write("baskets.parquet", {"g": [1] * 5, "i": list("abcde"), "t": [1] * 5})
    same = shop.pairs(shop.prepare(shop.schema(group_rule(same="leaf"))).dataset)
    different = shop.pairs(shop.prepare(shop.schema(group_rule(different="leaf"))).dataset)
    assert same.keys() == both("ab", "ce")
    assert different.keys() == both("ac", "ae", "bc", "be")
    # The total of an item counts all its groups, whatever is compared: a pair of five items counts 1/4.
    assert same["a", "b"]["count"] == 0.25


def test_groups_are_formed_within_a_part(shop, group_rule):
    shop.write("baskets.parquet", {"g": [1, 1, 1, 1], "i": list("abcd"), "t": [1, 2, 120, 130]})
    dataset = shop.prepare(shop.schema(group_rule())).dataset
    assert shop.pairs(dataset).keys() == both("ab")
    assert shop.pairs(dataset, split="valid").keys() == both("cd")
    assert dataset.manifest.tasks["task"].pairs == {"train": 2, "valid": 2, "test": 0}


def test_a_group_may_be_several_columns(shop, group_rule):
    shop.write("baskets.parquet", {"g": [1, 1, 1, 1], "h": list("xxyy"), "i": list("abcd"), "t": [1] * 4})
    assert shop.pairs(shop.prepare(shop.schema(group_rule(group=("g", "h")))).dataset).keys() == both("ab", "cd")


def test_minus_takes_either_direction_of_this_part_or_an_earlier_one(shop, group_rule):
    rows = [  # part by time: 1 train, 150 valid, 250 test
        (1, "ab", 1), (2, "cd", 1), (3, "ac", 150), (4, "ab", 150), (5, "ac", 250), (6, "ab", 250), (7, "de", 250), (8, "bc", 250)
    ]  # fmt: skip
    bought = {"g": [g for g, pair, _ in rows for _ in pair], "i": [i for _, pair, _ in rows for i in pair]}
    shop.write("baskets.parquet", bought | {"t": [t for _, pair, t in rows for _ in pair]})
    # Viewed: b -> a in training, a -> c in valid, d -> e in test only.
    shop.write("pairs.parquet", {"a": list("bad"), "c": list("ace"), "t": [1, 150, 250]})
    viewed = shop.schema().tasks["task"]
    tasks = {"bought": Task(anchor="item", candidate="item", pairs=group_rule(minus=("viewed",))), "viewed": viewed}
    dataset = shop.prepare(shop.schema(tasks=tasks)).dataset
    assert shop.pairs(dataset, "bought").keys() == both("cd")
    assert shop.pairs(dataset, "bought", "valid").keys() == set()
    assert shop.pairs(dataset, "bought", "test").keys() == both("bc")
    assert dataset.manifest.tasks["bought"].rejected == {"pair of a task in minus": 12}


def test_permutation_check_finds_structure_where_there_is_some(shop, group_rule):
    ids = [f"p{i:03d}" for i in range(60)]
    shop.write("items.parquet", {"id": ids})
    groups = np.repeat(np.arange(900), 2)
    first = np.arange(900) * 7 % 30 * 2
    paired = np.stack([first, first + 1], axis=1).ravel()  # 2k always with 2k + 1
    shop.write("baskets.parquet", {"g": groups, "i": [ids[i] for i in paired], "t": np.ones(1800, np.int64)})
    rule = group_rule(min_support=5, min_lift=3.0)
    plain = shop.prepare(shop.schema(rule))
    assert plain.dataset.manifest.tasks["task"].notes == {}
    checked = shop.prepare(shop.schema(rule), permutation_check=True)
    notes = checked.dataset.manifest.tasks["task"].notes
    assert checked.fresh
    assert checked.dataset.manifest.digest == plain.dataset.manifest.digest
    assert notes["real_pairs"] == 60
    assert notes["permuted_pairs"] <= 6
    assert not shop.prepare(shop.schema(rule), permutation_check=True).fresh
    assert not shop.prepare(shop.schema(rule)).fresh


def test_against_a_slow_twin(shop, group_rule):
    rng = np.random.default_rng(5)
    ids = list("abcdefghij")
    shop.write("items.parquet", {"id": ids})
    g, i, o = rng.integers(0, 40, 200), rng.integers(0, 10, 200), rng.integers(0, 5, 200)
    shop.write("baskets.parquet", {"g": g, "i": [ids[k] for k in i], "o": o, "t": np.ones(200, np.int64)})
    groups: dict[int, dict[int, int]] = {}
    for group, item, order in zip(g.tolist(), i.tolist(), o.tolist(), strict=True):
        members = groups.setdefault(group, {})
        members[item] = min(order, members.get(item, order))
    usable = [members for members in groups.values() if 2 <= len(members) <= 6]
    for direction in ("both", "forward"):
        support, count = np.zeros((10, 10)), np.zeros((10, 10))
        for members in usable:
            for x in members:
                for y in members:
                    if x != y and (direction == "both" or members[x] < members[y]):
                        support[x, y] += 1
                        count[x, y] += 1 / (len(members) - 1)
        n = np.array([sum(k in members for members in usable) for k in range(10)])
        lift = count * n.sum() / np.outer(n, n) * (2 if direction == "forward" else 1)
        want = {(ids[x], ids[y]) for x in range(10) for y in range(10) if support[x, y] >= 2 and lift[x, y] >= 0.9}
        rule = group_rule(
            max_group_size=6,
            min_support=2,
            min_lift=0.9,
            direction=direction,
            order="o" if direction == "forward" else None,
        )
        pairs = shop.pairs(shop.prepare(shop.schema(rule)).dataset)
        assert pairs.keys() == want
        for (x, y), row in pairs.items():
            assert row["count"] == pytest.approx(count[ids.index(x), ids.index(y)], rel=1e-6)
