"""What keeps the sum of powers of 2 in range: its reference per row, and columns that only fill up a round number.

A row's powers are relative to its best private logit, and to its best logit of all where they could leave float32.
"""

import math

import pytest
import torch

from tests.unit.models.losses.sums import SHAPES, Inputs, error
from tests.unit.models.losses.twins import logsumexp_twin, mask_of
from torchrec_mt.models.losses import walk
from torchrec_mt.models.losses.blocked import Blocked
from torchrec_mt.models.losses.walk import weighted_logsumexp

U = 2**-9
"""One rounding to bfloat16, see `test_bfloat16.py`."""
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_LOGITS_AT_ONCE", {"cpu": 0})


@pytest.fixture
def overflows(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What every call of `_may_overflow` says."""
    said, ask = [], walk._may_overflow

    def heard(*arguments: torch.Tensor) -> bool:
        said.append(ask(*arguments))
        return said[-1]

    monkeypatch.setattr(walk, "_may_overflow", heard)
    return said


def far_below(inverse: float, nats: float) -> Inputs:
    """Every second anchor's own logits lie so far below the others; one anchor of either kind is wholly blocked."""
    inputs = Inputs("logsumexp", inverse, anchors=128, columns=250, width=64)
    inputs.own[::2] -= nats
    mask_BC = mask_of(inputs.blocked, 128, 250)
    mask_BC[[6, 7]] = True
    inputs.weight_B[[6, 7]] = 1 / 128
    inputs.blocked = Blocked(*mask_BC.nonzero().unbind(dim=1))
    return inputs


@pytest.mark.parametrize("nats", [100.0, 300.0, 1000.0])
@pytest.mark.parametrize("inverse", [1.0, 14.0, 50.0, 400.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_negatives_that_exceed_the_positive_by_far(
    overflows: list[bool], inverse: float, nats: float, dtype: torch.dtype
) -> None:
    """In float32 shares are off by the rounding of a logit (2^-24 of it, own ones are as long as they are far off), the
    loss by four of them; in bfloat16 by no more than where nothing is far off (`test_bfloat16.py`)."""
    inputs = far_below(inverse, nats)
    total, gradients = inputs.measured(dtype=dtype)
    expected, expected_gradients = inputs.reference()
    assert overflows == [True]
    off = abs(total - expected) / inputs.weight_B.sum()
    assert off < ((nats + inverse) * 2**-22 if dtype == torch.float32 else 3.02 * U * inverse)
    for gradient, expected_gradient, longest in zip(
        gradients, expected_gradients, [inverse, inverse, nats + inverse], strict=True
    ):
        assert gradient.isfinite().all()
        if dtype == torch.float32:
            assert error(gradient, expected_gradient) < max(2e-6, longest * 2**-24)
        else:
            assert (gradient - expected_gradient).norm() < U * (3 + inverse) * expected_gradient.norm()


@pytest.mark.parametrize(
    ("product", "offset", "private"), [(96.0, 0.0, 0.0), (1.0, 95.0, 0.0), (1.0, 0.0, -95.0), (32.0, 32.0, -32.0)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_sides_of_the_largest_exponent(
    overflows: list[bool], product: float, offset: float, private: float, dtype: torch.dtype
) -> None:
    """Eight columns of 2^96.5 sum to 2^99.5 and keep the reference, eight of 2^97.5 take another. Weights go down to
    2^-26, the least whose quotient by 2^100 is a normal float32. All exponents are numbers of bfloat16."""
    weight_B = torch.tensor([1.0, 2**-13, 2**-26])
    for half, another in [(0.5, False), (1.5, True)]:
        leaves = (
            torch.full((3, 1), (product + half) * math.log(2)),
            torch.ones(8, 1),
            torch.full((3, 1), private * math.log(2)),
        )
        constants = torch.full((8,), offset * math.log(2)), weight_B, Blocked.nothing(weight_B.device)
        fast = [leaf.clone().requires_grad_() for leaf in leaves]
        total = weighted_logsumexp(*fast, *constants, dtype=dtype)
        slow = [leaf.double().requires_grad_() for leaf in leaves]
        expected = logsumexp_twin(*slow, constants[0].double(), weight_B.double(), constants[2])
        assert overflows.pop() is another
        assert error(total.detach(), expected.detach()) < (1e-6 if dtype == torch.float32 else U / 10)
        found, wanted = torch.autograd.grad(total, fast), torch.autograd.grad(expected, slow)
        for gradient, expected_gradient in zip(found, wanted, strict=True):
            for entry, expected_entry in zip(gradient, expected_gradient, strict=True):
                assert error(entry, expected_entry) < (1e-5 if dtype == torch.float32 else 3 * U)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_columns_that_fill_up_take_no_part(shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """41 columns become 48, the learning ones of them 0, 8, 32 or 48: whatever fills them up, not a bit changes."""
    inputs = Inputs(shape, 14.0)
    for learning in [0, 1, 25, 41]:
        total, gradients = inputs.measured(learning=learning, dtype=dtype)
        padded = walk._padded

        def filled(x_CN: torch.Tensor, value: float = 0.0, padded=padded) -> torch.Tensor:
            return padded(x_CN, 0.25 if x_CN.dim() == 2 else value)  # of width 16: also vectors of length 1

        with monkeypatch.context() as patch:
            patch.setattr(walk, "_padded", filled)
            again, again_gradients = inputs.measured(learning=learning, dtype=dtype)
        assert torch.equal(again, total)
        assert all(torch.equal(a, b) for a, b in zip(again_gradients, gradients, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_any_number_of_columns_half_of_them_remembered(shape: str) -> None:
    for columns in [1, 2, 7, 8, 9, 33, 47, 130, 145]:
        inputs, learning = Inputs(shape, 14.0, columns=columns), columns // 2
        total, gradients = inputs.measured(learning=learning)
        expected, expected_gradients = inputs.reference()
        most = expected_gradients[1].abs().max().item()
        expected_gradients[1][learning:] = 0
        assert error(total, expected) < 2e-6
        torch.testing.assert_close(gradients[1].double(), expected_gradients[1], rtol=0, atol=2e-6 * most)
        for place in (0, 2):
            assert error(gradients[place], expected_gradients[place]) < 2e-6
