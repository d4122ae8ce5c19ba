"""Reciprocal rank fusion against its sum, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mt.retrieval.baselines.fusion import fusion
from torchrec_mt.retrieval.baselines.ranker import Ranker

Lists = list[list[int]]


def fixed(lists: Lists) -> Ranker:
    """Ranks as listed, by anchor, as deep as it is asked."""

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        return np.array([(lists[row] + [-1] * k)[:k] for row in anchor_B.tolist()], np.int64).reshape(-1, k)

    return rank


def test_by_hand() -> None:
    one, two = fixed([[7, 8, 9], [4]]), fixed([[9, 7], []])
    # 7: 1/61 + 1/62; 9: 1/63 + 1/61, less; 8: 1/62 alone.
    assert fusion([one, two])(np.array([0, 1]), 4).tolist() == [[7, 9, 8, -1], [4, -1, -1, -1]]


def test_equal_sums_are_ranked_by_row() -> None:
    assert fusion([fixed([[5, 2]]), fixed([[2, 5]])])(np.array([0]), 2).tolist() == [[2, 5]]
    assert fusion([fixed([[9]]), fixed([[3]])])(np.array([0]), 2).tolist() == [[3, 9]]


def test_each_is_asked_deeper_than_it_is_answered() -> None:
    one, two = fixed([[0, 1, 2, 3, 4]]), fixed([[9, 8, 7, 2, 6]])
    assert fusion([one, two], depth=4)(np.array([0]), 1).tolist() == [[2]]
    assert fusion([one, two], depth=1)(np.array([0]), 1).tolist() == [[0]]


rankings = st.lists(st.lists(st.integers(0, 12), unique=True, max_size=10), min_size=3, max_size=3)


@given(first=rankings, second=rankings, third=rankings)
@settings(deadline=None, max_examples=60)
def test_fusion_equals_its_sum(first: Lists, second: Lists, third: Lists) -> None:
    k, depth = 4, 2
    ranked = fusion([fixed(first), fixed(second), fixed(third)], depth=depth)(np.arange(3), k)
    for anchor in range(3):
        score: dict[int, float] = {}
        for lists in (first, second, third):
            for rank, row in enumerate(lists[anchor][: k * depth], start=1):
                score[row] = score.get(row, 0.0) + 1 / (60 + rank)
        found = [row for row in ranked[anchor].tolist() if row >= 0]
        best = sorted(score.values(), reverse=True)[:k]
        assert [score[row] for row in found] == pytest.approx(best)
        assert len(set(found)) == len(found)


def test_no_anchors_are_no_rows() -> None:
    assert fusion([fixed([]), fixed([])])(np.zeros(0, np.int64), 3).shape == (0, 3)
