"""What an objective remembers: past candidates against a slow twin, and frequencies against the true ones."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchrec_mt.data.negatives import Memory, StreamingFrequencies
from torchrec_mt.training.memory import CandidateMemory, Columns, FrequencyEstimator


def columns(ids: list[int]) -> Columns:
    id_C = torch.tensor(ids, dtype=torch.int64)
    number_C = id_C.float()
    vector_CD = torch.stack([number_C, -number_C], dim=1).requires_grad_()
    return Columns(vector_CD, id_C, number_C / 1000, number_C / 100, torch.ones_like(number_C))


def test_equal_columns_become_one_with_a_count() -> None:
    merged = columns([7, 3, 7, 7, 5, 3]).merged()
    assert merged.id_C.tolist() == [3, 5, 7]
    assert merged.copies_C.tolist() == [2, 1, 3]
    assert merged.vector_CD[:, 0].tolist() == [3, 5, 7]
    assert merged.share_C.tolist() == pytest.approx([0.003, 0.005, 0.007])
    assert [len(part) for part in columns([]).merged()] == [0] * 5


def recalled(memory: CandidateMemory, step: int) -> list[int]:
    """Ids of what a memory recalls, oldest first, after a look at the rest."""
    held = memory.recall(step)
    for part in held:
        wanted = columns(part.id_C.tolist())
        assert not part.vector_CD.requires_grad, "as they were then, without gradient"
        assert all(torch.equal(a, b) for a, b in zip(part, wanted, strict=True))
    return [id_ for part in held for id_ in part.id_C.tolist()]


@given(
    size=st.integers(1, 12),
    max_age=st.integers(1, 5),
    warmup=st.integers(0, 6),
    lengths=st.lists(st.integers(0, 15), min_size=1, max_size=12),
)
def test_memory_against_a_slow_twin(size: int, max_age: int, warmup: int, lengths: list[int]) -> None:
    """The twin keeps every candidate that ever came: the newest `size`, of those the ones young enough."""
    memory = CandidateMemory(Memory(size=size, max_age=max_age, warmup=warmup))
    every: list[tuple[int, int]] = []
    for step, length in enumerate(lengths):
        young = [id_ for then, id_ in every[-size:] if then >= step - max_age]
        assert recalled(memory, step) == (young if step >= warmup else [])
        fresh = list(range(len(every), len(every) + length))
        memory.keep(step, columns(fresh))
        every += [(step, id_) for id_ in fresh]


def test_memory_by_hand() -> None:
    memory = CandidateMemory(Memory(size=5, max_age=2, warmup=1))
    memory.keep(0, columns([1, 2, 3]))
    assert recalled(memory, 0) == [], "warming up"
    assert recalled(memory, 1) == [1, 2, 3]
    memory.keep(1, columns([4, 5, 6]))
    assert recalled(memory, 2) == [2, 3, 4, 5, 6], "the oldest beyond the size is forgotten"
    memory.keep(2, columns([7]))
    assert recalled(memory, 3) == [4, 5, 6, 7], "step 0 is more than 2 steps ago"
    memory.keep(3, columns([10, 11, 12, 13, 14, 15, 16]))
    assert recalled(memory, 4) == [12, 13, 14, 15, 16], "of a batch larger than the memory the last"
    assert recalled(memory, 5) == [12, 13, 14, 15, 16]
    assert recalled(memory, 6) == []


def test_memory_does_not_hold_the_graph() -> None:
    memory, one = CandidateMemory(Memory(size=2, warmup=0)), columns([1, 2, 3])
    memory.keep(0, Columns(one.vector_CD * 2, *one[1:]))
    [held] = memory.recall(1)
    assert held.vector_CD.grad_fn is None
    assert held.vector_CD.tolist() == [[4, -4], [6, -6]]


def estimated(stream: list[Tensor], ids: int, **config: float) -> np.ndarray:
    """Estimated shares of the first `ids` ids after a stream of batches."""
    estimator = FrequencyEstimator(StreamingFrequencies(**config), torch.device("cpu"))  # type: ignore[arg-type]
    for id_P in stream:
        estimator.update(id_P)
    return estimator.share(torch.arange(ids)).double().numpy()


def skewed_stream(share_N: np.ndarray, batch: int, steps: int) -> list[Tensor]:
    rng = np.random.default_rng(5)
    return [torch.from_numpy(rng.choice(len(share_N), batch, p=share_N)) for _ in range(steps)]


@pytest.mark.parametrize("batch", [16, 200])
def test_the_estimate_converges_on_a_skewed_stream(batch: int) -> None:
    """40 ids of shares from 13% down to 0.4%, 60,000 pairs; in a batch of 200 the first comes 26 times.

    An estimate averages about 2 / rate = 200 gaps, whose relative deviation is at most 1: 7% of standard error, of 40
    the worst within 4 of them; their mean, which must show no bias, within 4 * 7% / sqrt(40) (plus 1% for the bias of
    1 / mean gap, which is its variance).
    """
    share_N = 1 / np.arange(3.0, 43.0)
    share_N /= share_N.sum()
    error_N = estimated(skewed_stream(share_N, batch, 60_000 // batch), 40, rate=0.01) / share_N - 1
    assert abs(error_N).max() < 0.28
    assert abs(error_N.mean()) < 0.055


def test_a_steady_stream_is_estimated_exactly() -> None:
    # Ids 0 (every other pair), 1 and 2 (every fourth), several copies in each batch.
    stream = [torch.tensor([0, 1, 0, 2] * 3)] * 10
    np.testing.assert_allclose(estimated(stream, 4, rate=0.1), [0.5, 0.25, 0.25, 0.0], rtol=1e-6)


def test_first_and_later_appearances_by_hand() -> None:
    # Id 3: first in the second batch of 4 pairs, twice: 8 pairs back to the start, 4 a copy. Then one 4 pairs later,
    # which changes nothing, then none, then one after 8: the mean of 4, 4, 4, 8.
    batches = [[0, 0, 0, 0], [3, 3, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3]]
    stream = [torch.tensor(batch) for batch in batches]
    gaps = [1 / estimated(stream[:length], 4, rate=0.1)[3] for length in range(2, 6)]
    np.testing.assert_allclose(gaps, [4, 4, 4, 5], rtol=1e-6)
    # At a higher rate the newest weighs more than its part: half of 4, half of 8.
    assert 1 / estimated(stream, 4, rate=0.5)[3] == pytest.approx(6)
    assert estimated(stream[:1], 4, rate=0.1)[3] == 0, "never seen"


def test_several_copies_weigh_as_several_appearances() -> None:
    # 0 comes first among 4 pairs, then, after a batch without, four times in 8 pairs: a mean of (4 + 4 * 2) / 5.
    stream = [torch.tensor([0, 1, 1, 1]), torch.tensor([1, 1, 1, 1]), torch.tensor([0, 0, 0, 0])]
    assert 1 / estimated(stream, 1, rate=0.1)[0] == pytest.approx(2.4)
    # At a rate of 0.5 four copies weigh 1 - 0.5 ** 4, more than 4 of 5.
    assert 1 / estimated(stream, 1, rate=0.5)[0] == pytest.approx(4 / 16 + 2 * 15 / 16)


def test_a_first_appearance_does_not_weigh_for_long() -> None:
    """At a rate of 0.001 all 300 appearances of a product weigh alike: 6% of standard error, not one gap's 100%."""
    share_N = np.full(40, 1 / 40)
    error_N = estimated(skewed_stream(share_N, 20, 600), 40, rate=0.001) / share_N - 1
    assert abs(error_N).max() < 0.24


def test_collisions_only_overestimate_and_more_tables_help() -> None:
    """200 ids with a steady period in few buckets; alone in a bucket each would be estimated exactly."""
    ids = 200
    batch = torch.arange(ids).repeat_interleave(1 + (torch.arange(ids) % 3 == 0).long())
    true_N = torch.bincount(batch).double().numpy() / len(batch)
    stream = [batch] * 5
    alone = estimated(stream, ids, buckets=1 << 20, hashes=1)
    np.testing.assert_allclose(alone, true_N, rtol=1e-5)
    excess = []
    for hashes in (1, 2, 3):
        share_N = estimated(stream, ids, buckets=256, hashes=hashes)
        assert (share_N >= true_N * (1 - 1e-5)).all()
        excess.append(float((share_N / true_N).mean() - 1))
    assert excess[0] > 0.2, "256 buckets for 200 ids collide"
    assert all(more < 0.75 * fewer for fewer, more in pairwise(excess)), excess


def test_ids_of_any_size_find_buckets() -> None:
    id_C = torch.tensor([0, 1, (1 << 31) - 1, 1 << 40, (1 << 62) + 12345])
    estimator = FrequencyEstimator(StreamingFrequencies(buckets=64, hashes=5), torch.device("cpu"))
    estimator.update(id_C)
    assert (estimator.share(id_C) >= 0.2 - 1e-6).all()


def test_buckets_are_filled_evenly() -> None:
    """Consecutive ids, 4096 into 4096 buckets: about 1 / e of the buckets stay empty, in every table."""
    estimator = FrequencyEstimator(StreamingFrequencies(buckets=4096, hashes=3), torch.device("cpu"))
    estimator.update(torch.arange(4096))
    for last_X in estimator._last_HX:
        assert float((last_X == 0).float().mean()) == pytest.approx(np.exp(-1), abs=0.04)
