"""Measures on judged pools: by hand, against loops, against trec_eval, and the random order's against all orders."""

import math
from itertools import permutations

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mt.retrieval.judged import Judged, judged_metrics, judged_names, random_expectation


def judged_of(rows: list[dict[int, float]]) -> Judged:
    items = [sorted(row) for row in rows]
    return Judged(
        np.cumsum([0, *(len(row) for row in items)]).astype(np.int64),
        np.array([item for row in items for item in row], np.int64),
        np.array([rows[n][item] for n, row in enumerate(items) for item in row], float),
    )


def padded(lists: list[list[int]], width: int) -> np.ndarray:
    return np.array([items + [-1] * (width - len(items)) for items in lists], np.int64).reshape(len(lists), width)


def values_of(ranked: list[int], grades: dict[int, float], k: int = 10) -> dict[str, float]:
    values = judged_metrics(padded([ranked], len(ranked)), judged_of([grades]), k)
    return {name: float(value[0]) for name, value in values.items()}


def test_by_hand() -> None:
    # 1 (grade 3) and 2 (grade 1) are relevant, 3 and 4 are not, 8 and 9 nobody judged.
    grades = {1: 3.0, 2: 1.0, 3: 0.0, 4: 0.0}
    ideal = 3 + 1 / math.log2(3)
    assert values_of([8, 3, 1, 9, 2, 4], grades) == {
        "condensed_ndcg@10": pytest.approx((3 / math.log2(3) + 1 / 2) / ideal),  # 3, 1, 2, 4
        "ndcg@10": pytest.approx((3 / 2 + 1 / math.log2(6)) / ideal),
        "bpref": pytest.approx((1 / 2 + 1 / 2) / 2),  # one of min(N, R) = 2 irrelevant ones stands before each
        "unjudged@10": 2 / 10,
    }
    assert values_of([8, 3, 1, 9, 2, 4], grades, k=1) == {
        "condensed_ndcg@1": 0,
        "ndcg@1": 0,
        "bpref": pytest.approx(1 / 2),
        "unjudged@1": 1,
    }


def test_what_was_not_found_counts_as_missed() -> None:
    assert values_of([9, 2], {1: 1.0, 2: 1.0, 3: 0.0}) == {
        "condensed_ndcg@10": pytest.approx(1 / (1 + 1 / math.log2(3))),
        "ndcg@10": pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3))),
        "bpref": 1 / 2,
        "unjudged@10": 1 / 10,
    }


def test_a_pool_without_irrelevant_items_has_nothing_to_confuse() -> None:
    assert values_of([1, 9, 2], {1: 1.0, 2: 1.0})["bpref"] == 1


def test_an_anchor_without_relevant_items_has_no_value() -> None:
    judged = judged_of([{1: 0.0}, {}, {1: 0.0, 2: 0.5}])
    values, chance = judged_metrics(padded([[1], [1], [2]], 1), judged), random_expectation(judged, 9)
    for name in judged_names():
        assert np.isnan(values[name]).tolist() == np.isnan(chance[name]).tolist() == [True, True, False]


def test_no_anchors_and_lists_that_do_not_fit() -> None:
    empty = judged_metrics(np.zeros((0, 5), np.int64), judged_of([]))
    assert [(name, value.shape) for name, value in empty.items()] == [(name, (0,)) for name in judged_names()]
    with pytest.raises(ValueError, match=r"lists \[1, 1\] do not fit: one row for each of 2"):
        judged_metrics(padded([[1]], 1), judged_of([{}, {}]))


def test_rows_of_some_anchors() -> None:
    judged = judged_of([{1: 1.0}, {2: 0.0, 5: 2.0}, {}, {7: 1.0}])
    part = judged.rows(1, 3)
    assert (part.offsets.tolist(), part.items.tolist(), part.grades.tolist()) == ([0, 2, 2], [2, 5], [0, 2])


def slow_twin(ranked: list[int], grades: dict[int, float], k: int) -> list[float]:
    """The measures as their definitions read, item by item."""
    relevant = {item: grade for item, grade in grades.items() if grade > 0}
    if not relevant:
        return [math.nan] * 4
    first = [item if item not in ranked[:rank] else -2 for rank, item in enumerate(ranked)]
    condensed = [item for item in first if item in grades]
    ideal = sum(gain / math.log2(1 + r) for r, gain in enumerate(sorted(relevant.values(), reverse=True)[:k], 1))

    def ndcg(items: list[int]) -> float:
        return sum(relevant.get(item, 0) / math.log2(1 + r) for r, item in enumerate(items[:k], 1)) / ideal

    bpref, wrong, irrelevant = 0.0, 0, len(grades) - len(relevant)
    for item in condensed:
        if item not in relevant:
            wrong += 1
        elif wrong:
            bpref += 1 - min(wrong, len(relevant)) / min(irrelevant, len(relevant))
        else:
            bpref += 1
    unjudged = sum(item not in grades and item != -1 for item in first[:k])
    return [ndcg(condensed), ndcg(first), bpref / len(relevant), unjudged / k]


CASES = st.lists(
    st.tuples(
        st.lists(st.integers(-1, 12), max_size=14),
        st.dictionaries(st.integers(0, 14), st.sampled_from([0.0, 0.5, 1.0, 3.0])),
    ),
    max_size=5,
)


@given(CASES, st.integers(1, 15))
def test_equal_the_slow_twin(cases: list[tuple[list[int], dict[int, float]]], k: int) -> None:
    """Repeats, gaps, empty lists, nothing relevant, nothing judged."""
    values = judged_metrics(padded([ranked for ranked, _ in cases], 14), judged_of([grades for _, grades in cases]), k)
    expected = [slow_twin(*case, k) for case in cases]
    for number, name in enumerate(judged_names(k)):
        assert values[name].tolist() == pytest.approx([row[number] for row in expected], nan_ok=True), name


def trec_eval(ranked: list[int], grades: dict[int, float]) -> dict[str, float]:
    """NIST's own program on the same list, and on the condensed list; whole grades, no repeats, something relevant."""
    judged = {"0": {str(item): int(grade) for item, grade in grades.items()}}
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {"bpref", "ndcg_cut.10"})

    def answer(items: list[int]) -> dict[str, float]:
        return evaluator.evaluate({"0": {str(item): -float(rank) for rank, item in enumerate(items)}}).get("0", {})

    condensed = [item for item in ranked if item in grades]
    return {
        "condensed_ndcg@10": answer(condensed).get("ndcg_cut_10", 0.0),
        "ndcg@10": answer(ranked).get("ndcg_cut_10", 0.0),
        "bpref": answer(ranked).get("bpref", 0.0),
    }


def test_agree_with_trec_eval() -> None:
    rng = np.random.default_rng(0)
    for number in range(80):
        ranked = rng.permutation(120)[: rng.integers(1, 120)].tolist()
        judged = rng.choice(120, rng.integers(2, 50), replace=False)
        grades = {int(item): float(rng.integers(0, 4)) for item in judged} | {int(judged[0]): 1.0 + number % 3}
        ours = values_of(ranked, grades)
        for name, value in trec_eval(ranked, grades).items():
            assert ours[name] == pytest.approx(value, abs=1e-9), (name, number)


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize(
    "grades",
    [
        {0: 3.0, 1: 1.0, 2: 0.0},
        {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0},
        {0: 2.0, 1: 2.0, 2: 1.0, 4: 0.0},
        {3: 1.0},
        {0: 1.0, 1: 3.0},
    ],
)
def test_random_is_the_mean_over_all_orders_of_the_catalogue(grades: dict[int, float], k: int) -> None:
    orders = np.array(list(permutations(range(6))))
    every = judged_metrics(orders, judged_of([grades] * len(orders)), k)
    chance = random_expectation(judged_of([grades]), 6, k)
    assert {name: value.mean() for name, value in every.items()} == {
        name: pytest.approx(value[0]) for name, value in chance.items()
    }


def test_a_random_order_of_a_pool_of_good_items_looks_good() -> None:
    """Nine of ten are perfect: the trap of judged-only measures, and why the random row is printed."""
    pool = judged_of([{item: 3.0 if item else 0.0 for item in range(10)}])
    assert random_expectation(pool, 10_000)["condensed_ndcg@10"][0] > 0.9
    assert random_expectation(pool, 10_000)["ndcg@10"][0] < 0.002
