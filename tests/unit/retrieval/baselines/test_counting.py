"""Chance, and co-occurrence by cosine and lift against their formulas."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from tests.tiny import PRODUCTS, TASKS
from tests.unit.retrieval.baselines.worlds import anchors_of, by_popularity, dense, small_world
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.counting import chance, co_occurrence

Score = Callable[[float, float, float, float], float]
FORMULAS: dict[float, Score] = {
    0.0: lambda both, anchor, candidate, total: both,
    0.5: lambda both, anchor, candidate, total: both / math.sqrt(anchor * candidate),
    1.0: lambda both, anchor, candidate, total: both * total / (anchor * candidate),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return small_world(tmp_path_factory.mktemp("world") / "tiny")


@pytest.mark.parametrize("discount", FORMULAS)
@pytest.mark.parametrize("task", TASKS)
def test_co_occurrence_is_ranked_by_its_formula(world: PreparedDataset, task: str, discount: float) -> None:
    count_AN, popular = dense(world, task), by_popularity(world, task)
    ranked_BK = co_occurrence(world, task, discount=discount)(anchors_of(task), PRODUCTS)
    for anchor, ranked in zip(anchors_of(task), ranked_BK.tolist(), strict=True):
        known = np.flatnonzero(count_AN[anchor]).tolist()
        score = {
            row: FORMULAS[discount](
                count_AN[anchor, row], count_AN[anchor].sum(), count_AN[:, row].sum(), count_AN.sum()
            )
            for row in known
        }
        # Equal ones may differ in the last bits of a power.
        first = sorted(known, key=lambda row: (-round(score[row], 9), popular.index(row)))
        rest = [row for row in popular if row not in known and (task == "find" or row != anchor)]
        assert [row for row in ranked if row >= 0] == first + rest


def test_weightings_differ_where_popularity_does(world: PreparedDataset) -> None:
    lists = [co_occurrence(world, "alike", discount=discount)(anchors_of("alike"), 5) for discount in FORMULAS]
    assert all((one != other).any() for one, other in ((lists[0], lists[1]), (lists[1], lists[2])))


@pytest.mark.parametrize("task", TASKS)
def test_chance_hangs_on_the_anchor_alone_and_prefers_nothing(world: PreparedDataset, task: str) -> None:
    anchors, rank = anchors_of(task), chance(world, task)
    together = rank(anchors, 10)
    assert [rank(anchors[n : n + 1], 10)[0].tolist() for n in range(len(anchors))] == together.tolist()
    assert chance(world, task)(anchors[::-1], 10)[::-1].tolist() == together.tolist()
    drawn = np.bincount(rank(anchors, 30).ravel(), minlength=PRODUCTS)
    expected = len(anchors) * 30 / PRODUCTS
    assert drawn.min() > expected / 3
    assert drawn.max() < 2 * expected
