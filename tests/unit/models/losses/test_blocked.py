"""Blocked columns by id: by hand, and against a slow twin."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mt.models.losses.blocked import Blocked, find_blocked, row_sums


def ids(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def found(owner: list[int], entry: list[int], column: list[int]) -> Blocked:
    return find_blocked(ids(owner), ids(entry), ids(column))


def test_by_hand() -> None:
    # Pairs (1, 10), (1, 11), (2, 10), (10, 3); columns: their candidates, then negatives 11, 2, 9. Each anchor must not
    # meet itself nor what it is paired with anywhere in the batch.
    owner, entry = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3], [1, 10, 11, 1, 10, 11, 2, 10, 3, 10]
    blocked = found(owner, entry, [10, 11, 10, 3, 11, 2, 9])
    mask_BC = torch.zeros(4, 7, dtype=torch.int64)
    mask_BC[blocked.row_L, blocked.column_L] = 1
    assert mask_BC.tolist() == [
        [1, 1, 1, 0, 1, 0, 0],  # every copy of 10 and 11
        [1, 1, 1, 0, 1, 0, 0],
        [1, 0, 1, 0, 0, 1, 0],  # 2 itself is among the negatives
        [1, 0, 1, 1, 0, 0, 0],  # 10 itself is a candidate of others
    ]
    assert blocked.row_L.tolist() == [0] * 4 + [1] * 4 + [2] * 3 + [3] * 3


@given(st.data())
def test_equals_the_slow_twin(data: st.DataObject) -> None:
    some_id = st.integers(0, 8)
    column = data.draw(st.lists(some_id, max_size=12))
    entries = sorted(data.draw(st.sets(st.tuples(st.integers(0, 5), some_id), max_size=20)))
    blocked = found([owner for owner, _ in entries], [entry for _, entry in entries], column)
    expected = {(owner, place) for owner, entry in entries for place, held in enumerate(column) if held == entry}
    places = list(zip(blocked.row_L.tolist(), blocked.column_L.tolist(), strict=True))
    assert set(places) == expected
    assert len(places) == len(expected)  # no place twice
    assert blocked.row_L.tolist() == sorted(blocked.row_L.tolist())


@pytest.mark.parametrize(
    ("owner", "entry", "column"),
    [([], [], [1, 2]), ([0, 3], [1, 2], []), ([], [], []), ([0, 1], [7, 9], [1, 8, 10])],
    ids=["no entries", "no columns", "neither", "ids that are not there"],
)
def test_nothing_is_blocked(owner: list[int], entry: list[int], column: list[int]) -> None:
    blocked = found(owner, entry, column)
    assert blocked.row_L.tolist() == blocked.column_L.tolist() == []
    assert blocked.row_L.dtype == blocked.column_L.dtype == torch.int64


def test_sums_of_rows() -> None:
    blocked = Blocked(ids([0, 0, 2]), ids([1, 3, 0]))
    assert row_sums(blocked, torch.tensor([1.0, 2.0, 4.0]), 4).tolist() == [3.0, 0.0, 4.0, 0.0]
    nothing = Blocked.nothing(torch.device("cpu"))
    assert row_sums(nothing, torch.zeros(0), 2).tolist() == [0.0, 0.0]
