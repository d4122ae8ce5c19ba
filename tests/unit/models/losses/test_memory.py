"""The matrix of all logits never exists: more anchors and columns make no tensor larger than a fixed limit."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.unit.models.losses.comparisons import random_comparison
from torchrec_mt.models.losses import walk
from torchrec_mt.models.losses.config import BceLoss, Loss, MarginLoss, SoftmaxLoss
from torchrec_mt.models.losses.terms import task_loss

LIMIT = 1 << 15


class Largest(TorchDispatchMode):
    """Remembers the size of the largest memory that any result of any operation lies in."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numbers = max(self.numbers, leaf.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "loss", [SoftmaxLoss(label_smoothing=0.1), BceLoss(), MarginLoss()], ids=lambda loss: loss.kind
)
def test_the_largest_tensor_does_not_grow(loss: Loss, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Width 4, so vectors of 4096 anchors are 2^14 numbers, and 8 rows of 4096 logits 2^15: B x C would be 2^24."""
    monkeypatch.setattr(walk, "_LOGITS_AT_ONCE", {"cpu": LIMIT})
    for size in [512, 1024, 4096]:
        compared = random_comparison(1, size, size, 1, width=4, blocked_share=1 / size)
        with Largest() as largest:
            task_loss(loss, compared, dtype).backward()
        assert LIMIT // 2 <= largest.numbers <= LIMIT  # in bfloat16 the logits take half the bytes


def test_the_matrix_would_be_noticed() -> None:
    anchor_BD = torch.randn(512, 4, requires_grad=True)
    with Largest() as largest:
        (anchor_BD @ torch.randn(4, 512)).logsumexp(dim=1).sum().backward()
    assert largest.numbers == 512 * 512
