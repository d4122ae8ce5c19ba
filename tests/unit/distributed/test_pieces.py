"""What is no piece of a tensor. Saving and loading them: tests/unit/training/test_checkpoints_round_trip.py."""

import pytest
import torch

from torchrec_mt.distributed.pieces import Pieces


def test_pieces_that_are_none() -> None:
    zeros = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="is no part of"):
        Pieces((3, 2), torch.float32, [((2, 0), zeros)])
    with pytest.raises(ValueError, match="pieces overlap"):
        Pieces((9, 2), torch.float32, [((5, 0), zeros), ((0, 0), zeros), ((1, 0), zeros)])
    with pytest.raises(ValueError, match=r"torch\.float32 piece"):
        Pieces((2, 2), torch.float16, [((0, 0), zeros)])
    with pytest.raises(ValueError, match=r"piece \[2, 2\] at \[0\]"):
        Pieces((2,), torch.float32, [((0,), zeros)])


def test_empty_pieces_are_left_out() -> None:
    """They may begin where another piece does."""
    pieces = Pieces((4, 2), torch.float32, [((0, 0), torch.zeros(0, 2)), ((0, 0), torch.zeros(4, 2))])
    assert [tuple(tensor.shape) for _, tensor in pieces.pieces] == [(4, 2)]
