import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mt.data.mixing import FixedMixing, ProportionalMixing, TemperatureMixing, batch_sizes
from torchrec_mt.errors import UserError


def test_each_kind_by_hand() -> None:
    pairs = {"a": 900, "b": 100}
    assert batch_sizes(ProportionalMixing(), pairs, 102) == {"a": 91, "b": 11}
    assert batch_sizes(TemperatureMixing(temperature=2), pairs, 102) == {"a": 76, "b": 26}
    assert batch_sizes(FixedMixing(shares={"a": 1, "b": 3}), pairs, 102) == {"a": 26, "b": 76}


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=6), st.integers(6, 5000))
def test_sizes_sum_to_the_batch_and_leave_no_task_out(counts: list[int], batch: int) -> None:
    sizes = batch_sizes(ProportionalMixing(), {str(i): n for i, n in enumerate(counts)}, batch)
    assert sum(sizes.values()) == batch
    assert min(sizes.values()) >= 1


@pytest.mark.parametrize(
    ("mixing", "batch", "said"),
    [
        (FixedMixing(shares={"a": 1}), 10, "reader.mixing.shares"),
        (ProportionalMixing(), 1, "reader.batch_size = 1"),
    ],
)
def test_settings_that_cannot_be(mixing: FixedMixing, batch: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        batch_sizes(mixing, {"a": 1, "b": 1}, batch)
