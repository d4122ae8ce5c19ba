"""Metrics by hand and against a slow twin."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mt.retrieval.metrics import METRICS, Relevant, ranking_metrics


def relevant_of(rows: list[dict[int, float]]) -> Relevant:
    items = [sorted(row) for row in rows]
    return Relevant(
        np.concatenate([[0], np.cumsum([len(row) for row in items])]).astype(np.int64),
        np.array([item for row in items for item in row], np.int64),
        np.array([rows[n][item] for n, row in enumerate(items) for item in row], float),
    )


def test_by_hand() -> None:
    # Anchor 0: relevant 5 (grade 1) and 7 (grade 3), found at ranks 1 and 3. Anchor 1: nothing found.
    ranked = np.full((2, 100), -1)
    ranked[0, :4] = [5, 1, 7, 2]
    ranked[1, :2] = [0, 3]
    values = ranking_metrics(ranked, relevant_of([{5: 1.0, 7: 3.0, 9: 1.0}, {4: 2.0}]))
    assert values["recall@10"].tolist() == [2 / 3, 0]
    assert values["recall@100"].tolist() == [2 / 3, 0]
    assert values["mrr@10"].tolist() == [1, 0]
    ideal = 3 + 1 / math.log2(3) + 1 / 2
    assert values["ndcg@10"] == pytest.approx([(1 + 3 / 2) / ideal, 0])


def slow_twin(ranked: list[int], relevant: dict[int, float]) -> dict[str, float]:
    def recall(k: int) -> float:
        return len([item for item in ranked[:k] if item in relevant]) / len(relevant)

    gains = sorted(relevant.values(), reverse=True)[:10]
    dcg = sum(relevant.get(item, 0) / math.log2(rank + 2) for rank, item in enumerate(ranked[:10]))
    first = [rank for rank, item in enumerate(ranked[:10]) if item in relevant]
    return {
        "recall@10": recall(10),
        "recall@100": recall(100),
        "ndcg@10": dcg / sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains)),
        "mrr@10": 1 / (1 + first[0]) if first else 0.0,
    }


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.permutations(range(30)),
            st.dictionaries(st.integers(0, 29), st.sampled_from([1.0, 2.0, 3.0]), min_size=1),
            st.integers(0, 30),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_equal_the_slow_twin(cases: list[tuple[list[int], dict[int, float], int]]) -> None:
    ranked = np.full((len(cases), 100), -1)
    for number, (order, _, found) in enumerate(cases):
        ranked[number, :found] = order[:found]
    values = ranking_metrics(ranked, relevant_of([relevant for _, relevant, _ in cases]))
    for number, (order, relevant, found) in enumerate(cases):
        expected = slow_twin(list(order[:found]), relevant)
        assert {name: values[name][number] for name in METRICS} == pytest.approx(expected)
