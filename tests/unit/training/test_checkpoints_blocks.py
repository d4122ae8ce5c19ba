"""How the blocks of a file are shared out among the threads that read them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mt.training.checkpoints.blocks import Block, runs_of


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 4))
def test_every_block_is_in_one_run_and_runs_are_about_as_long(sizes: list[int], number: int) -> None:
    blocks = [Block(0, "", torch.empty(0, dtype=torch.uint8), shape=(size,), offsets=(0,)) for size in sizes]
    runs = runs_of(blocks, number)
    assert [block for run in runs for block in run] == blocks
    assert 1 <= len(runs) <= number
    assert all(runs)
    most = max(sum(block.bytes for block in run) for run in runs)
    assert most < sum(sizes) / number + max(sizes)


def test_what_is_wanted_of_a_block() -> None:
    whole = torch.arange(20.0).view(5, 4)
    found = whole.view(-1).view(torch.uint8)
    part = Block(0, "", torch.zeros(2, 3), shape=(5, 4), offsets=(1, 1))
    part.take(found)
    assert torch.equal(part.target, whole[1:3, 1:4])
    assert (part.bytes, part.is_straight) == (80, False)
    assert Block(0, "", torch.zeros(5, 4), shape=(5, 4), offsets=(0, 0)).is_straight
    assert not Block(0, "", torch.zeros(4, 5).T, shape=(5, 4), offsets=(0, 0)).is_straight
