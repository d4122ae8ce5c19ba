"""Measures of lists by hand and against slow twins."""

import math
from collections.abc import Callable
from itertools import combinations
from statistics import mean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mt.retrieval import metrics
from torchrec_mt.retrieval.lists import (
    coverage,
    cross_category,
    diversity,
    novelty,
    popularity_lift,
    unknown_categories,
)

N = 9
LISTS = np.array([[0, 1, 2, 3], [3, 3, -1, 3], [-1, -1, -1, -1], [4, -1, 5, 0]])
CATEGORY_N = np.array([7, 7, 8, -1, 8, 8, 0, 0, 0])
COUNT_N = np.array([4, 1, 1, 0, 2, 0, 0, 0, 0])


def test_coverage_by_hand() -> None:
    assert coverage(LISTS, 1, N) == 3 / 9  # 0, 3, 4
    assert coverage(LISTS, 4, N) == coverage(LISTS, 99, N) == 6 / 9
    assert coverage(LISTS[2:3], 4, N) == coverage(LISTS[:0], 4, N) == 0


def test_novelty_by_hand() -> None:
    # 8 pairs and one more for each of 9 products: 17.
    bits = {item: math.log2(17 / (count + 1)) for item, count in enumerate(COUNT_N.tolist())}
    found = novelty(LISTS, 3, COUNT_N)
    assert found == pytest.approx(
        [(bits[0] + bits[1] + bits[2]) / 3, bits[3], math.nan, (bits[4] + bits[5]) / 2], nan_ok=True
    )


def test_popularity_lift_by_hand() -> None:
    # The product of a training pair has (16 + 1 + 1 + 4) / 8 = 2.75 pairs on average.
    found = popularity_lift(LISTS, 3, COUNT_N)
    assert found == pytest.approx([2 / 2.75 - 1, -1, math.nan, 1 / 2.75 - 1], nan_ok=True)


def test_lists_drawn_from_the_training_pairs_are_not_lifted() -> None:
    drawn = np.repeat(np.arange(N), COUNT_N)[:, None]
    assert popularity_lift(drawn, 1, COUNT_N).mean() == pytest.approx(0)


def test_without_training_pairs_nothing_is_popular_and_all_equally_new() -> None:
    nothing_N = np.zeros(N, np.int64)
    assert np.isnan(popularity_lift(LISTS, 3, nothing_N)).all()
    assert novelty(LISTS[:2], 3, nothing_N) == pytest.approx(math.log2(N))


def test_diversity_by_hand() -> None:
    # Known categories 7 7 8: two of three pairs differ. One known only. None. 8 8 7: two of three.
    assert diversity(LISTS, 4, CATEGORY_N) == pytest.approx([2 / 3, math.nan, math.nan, 2 / 3], nan_ok=True)
    assert diversity(LISTS, 2, CATEGORY_N)[0] == 0
    assert unknown_categories(LISTS, 4, CATEGORY_N).tolist() == [1, 1, 0, 0]


def test_cross_category_by_hand() -> None:
    found = cross_category(LISTS, 4, CATEGORY_N, np.array([7, 7, 7, -1]))
    assert found == pytest.approx([1 / 3, math.nan, math.nan, math.nan], nan_ok=True)
    assert cross_category(LISTS[3:], 4, CATEGORY_N, np.array([1])).tolist() == [1]


MEASURES: list[Callable[[np.ndarray, int], object]] = [
    lambda ranked, k: coverage(ranked, k, N),
    lambda ranked, k: novelty(ranked, k, COUNT_N),
    lambda ranked, k: popularity_lift(ranked, k, COUNT_N),
    lambda ranked, k: diversity(ranked, k, CATEGORY_N),
    lambda ranked, k: cross_category(ranked, k, CATEGORY_N, np.zeros(len(ranked), np.int64)),
    lambda ranked, k: unknown_categories(ranked, k, CATEGORY_N),
]


@pytest.mark.parametrize("measure", MEASURES)
def test_a_cut_off_of_nothing_is_an_error(measure: Callable[[np.ndarray, int], object]) -> None:
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        measure(LISTS, 0)


@pytest.mark.parametrize("measure", MEASURES[1:])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_no_anchors_and_no_places(measure: Callable[[np.ndarray, int], np.ndarray], shape: tuple[int, int]) -> None:
    found = measure(np.zeros(shape, np.int64), 5)
    assert found.shape == shape[:1]
    assert all(math.isnan(value) or value == 0 for value in found)


def slow_twin(
    lists: list[list[int]], k: int, count: list[int], category: list[int], anchor_category: list[int]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in ("novelty", "lift", "diversity", "cross", "unknown")}
    seen: set[int] = set()
    pairs = [item for item, number in enumerate(count) for _ in range(number)]
    for items, own in zip(lists, anchor_category, strict=True):
        row = list(dict.fromkeys(item for item in items[:k] if item >= 0))
        known = [category[item] for item in row if category[item] >= 0]
        seen.update(row)
        bits = [-math.log2((count[item] + 1) / (sum(count) + len(count))) for item in row]
        found["novelty"].append(mean(bits) if row else math.nan)
        typical = mean(count[item] for item in pairs) if pairs else math.nan
        found["lift"].append(mean(count[item] for item in row) / typical - 1 if row else math.nan)
        differ = [one != other for one, other in combinations(known, 2)]
        found["diversity"].append(mean(differ) if differ else math.nan)
        found["cross"].append(mean(one != own for one in known) if known and own >= 0 else math.nan)
        found["unknown"].append(len(row) - len(known))
    return found | {"coverage": [len(seen) / len(count)]}


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.lists(st.integers(-1, N - 1), min_size=8, max_size=8), min_size=1, max_size=6),
    st.integers(1, 10),
    st.lists(st.integers(0, 5), min_size=N, max_size=N),
    st.lists(st.integers(-1, 3), min_size=N, max_size=N),
    st.lists(st.integers(-1, 3), min_size=6, max_size=6),
    st.integers(1, 40),
)
def test_equal_the_slow_twin(
    lists: list[list[int]], k: int, count: list[int], category: list[int], own: list[int], places_at_once: int
) -> None:
    """Repeats, gaps, unknown categories, and any cut into blocks."""
    ranked, count_N, category_N, own_B = (np.array(x) for x in (lists, count, category, own[: len(lists)]))
    before = ranked.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_PLACES_AT_ONCE", places_at_once)
        found = {
            "novelty": novelty(ranked, k, count_N),
            "lift": popularity_lift(ranked, k, count_N),
            "diversity": diversity(ranked, k, category_N),
            "cross": cross_category(ranked, k, category_N, own_B),
            "unknown": unknown_categories(ranked, k, category_N),
            "coverage": np.array([coverage(ranked, k, N)]),
        }
    expected = slow_twin(lists, k, count, category, own[: len(lists)])
    for name, values in expected.items():
        assert found[name].tolist() == pytest.approx(values, nan_ok=True), name
    assert np.array_equal(ranked, before)
