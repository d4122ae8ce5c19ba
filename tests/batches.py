"""Batches laid open, to be compared bit by bit."""

from typing import Any

import torch
from torch import Tensor

from torchrec_mt.batch import Batch


def tensors(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch, always in the same order."""
    found: list[Tensor] = []

    def note(value: Any) -> Any:
        found.extend([value] if isinstance(value, Tensor) else [value.values(), value.weights(), value.lengths()])
        return value

    batch._map(note)
    return found


def equal(one: Batch, two: Batch) -> bool:
    """The same bits in every tensor."""
    pairs = zip(tensors(one), tensors(two), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
