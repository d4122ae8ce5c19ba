"""Whole losses against their twins in float64 over dense matrices, loss and every gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.models.losses.comparisons import random_comparison
from tests.unit.models.losses.twins import doubled, task_twin
from torchrec_mt.models.losses import walk
from torchrec_mt.models.losses.config import BceLoss, Loss, MarginLoss, SoftmaxLoss
from torchrec_mt.models.losses.terms import Comparison, task_loss

LOSSES = {
    "softmax": SoftmaxLoss(),
    "smoothed": SoftmaxLoss(label_smoothing=0.2),
    "bce": BceLoss(),
    "margin": MarginLoss(margin=0.6),
}
LEARNED = ["anchor_BD", "positive_BD", "column_CD", "private_BHD", "inverse_temperature", "bias"]


def loss_and_gradients(total: Tensor, compared: Comparison) -> dict[str, Tensor]:
    leaves = [getattr(compared, name) for name in LEARNED]
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    found = dict(zip(LEARNED, gradients, strict=True))
    found["column_CD"] = found["column_CD"][: compared.learning]
    return {"loss": total.detach(), **found}


def measured(loss: Loss, compared: Comparison, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return loss_and_gradients(task_loss(loss, compared, dtype), compared)


def expected(loss: Loss, compared: Comparison) -> dict[str, Tensor]:
    twin = doubled(compared)
    for name in LEARNED:
        getattr(twin, name).requires_grad_()
    return loss_and_gradients(task_twin(loss, twin), twin)


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], bound: float) -> None:
    """Every entry off by at most `bound` of the largest of its tensor, or of 1 where that is larger."""
    for name, value in wanted.items():
        largest = max(1.0, value.abs().max().item() if value.numel() else 0.0)
        torch.testing.assert_close(
            found[name].double(), value, rtol=0, atol=bound * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("corrected", [True, False], ids=["corrected", "uncorrected"])
@pytest.mark.parametrize("name", LOSSES)
@given(
    seed=st.integers(0, 2**31),
    anchors=st.integers(0, 12),
    columns=st.integers(0, 20),
    private=st.integers(0, 3),
    blocked_share=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    memory_share=st.sampled_from([0.0, 0.3, 1.0]),
    standard=st.booleans(),
    inverse_temperature=st.sampled_from([1.0, 5.0, 20.0]),
    rows=st.integers(1, 8),
)
def test_equal_the_twin(
    name: str,
    corrected: bool,
    seed: int,
    anchors: int,
    columns: int,
    private: int,
    blocked_share: float,
    memory_share: float,
    standard: bool,
    inverse_temperature: float,
    rows: int,
) -> None:
    compared = random_comparison(
        seed,
        anchors,
        columns,
        private,
        blocked_share=blocked_share,
        memory=int(memory_share * columns),
        standard=standard,
        corrected=corrected,
        inverse_temperature=inverse_temperature,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walk, "_MIN_ROWS", rows)
        patch.setattr(walk, "_LOGITS_AT_ONCE", {"cpu": 0})
        assert_equal(measured(LOSSES[name], compared), expected(LOSSES[name], compared), 1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_larger_batch(name: str) -> None:
    compared = random_comparison(3, 200, 500, 4, width=32, memory=100, inverse_temperature=14.0, catalogue=5000)
    assert_equal(measured(LOSSES[name], compared), expected(LOSSES[name], compared), 3e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_products_are_of_the_type_asked_for(name: str) -> None:
    """In bfloat16 a loss is close to that in float32 and not equal."""
    compared = random_comparison(3, 200, 500, 4, width=32)
    low, high = (measured(LOSSES[name], compared, dtype)["loss"] for dtype in (torch.bfloat16, torch.float32))
    assert low != high
    assert low.item() == pytest.approx(high.item(), rel=1e-3)
