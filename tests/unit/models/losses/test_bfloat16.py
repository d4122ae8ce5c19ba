"""How far products in bfloat16 are off, against float64 over the whole matrix.

One rounding to bfloat16 changes a number by at most u = 2^-9 of it. A logit of unit vectors at inverse temperature t is
rounded three times (anchor, column, product), so it is off by at most 3.02 u t: what follows from that is asserted as
`derived`. Measured errors are smaller, for roundings are random; bounds on them are about twice the worst of 18 draws
(128 anchors, 256 columns, width 32 to 128).
"""

import pytest
import torch

from tests.unit.models.losses.sums import SHAPES, Inputs, error
from tests.unit.models.losses.twins import mask_of
from torchrec_mt.models.losses import walk

U = 2**-9
INVERSES = [1.0, 5.0, 14.0, 50.0]


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "_LOGITS_AT_ONCE", {"cpu": 8000})


def inputs_at(shape: str, inverse: float) -> Inputs:
    return Inputs(shape, inverse, anchors=128, columns=256, width=64)


@pytest.mark.parametrize("inverse", INVERSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_is_close(shape: str, inverse: float) -> None:
    """Worst measured: 2e-5 of the logsumexp, 8e-4 of the sum of softplus, 4e-4 of that of hinges."""
    inputs = inputs_at(shape, inverse)
    total, _ = inputs.measured(dtype=torch.bfloat16)
    expected, _ = inputs.reference()
    assert error(total, expected) < (5e-5 if shape == "logsumexp" else 2e-3)


@pytest.mark.parametrize("inverse", INVERSES)
@pytest.mark.parametrize("shape", ["logsumexp", "softplus"])
def test_the_gradient_is_close(shape: str, inverse: float) -> None:
    """Relative error in norm; worst measured of the logsumexp .003 at t = 1, .012 at t = 14, .066 at t = 50."""
    inputs = inputs_at(shape, inverse)
    _, gradients = inputs.measured(dtype=torch.bfloat16)
    _, expected = inputs.reference()
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert (gradient - expected_gradient).norm() < U * (3 + inverse) * expected_gradient.norm()


@pytest.mark.parametrize("inverse", INVERSES)
def test_a_logsumexp_is_off_by_no_more_than_its_logits(inverse: float) -> None:
    """Derived: |error of the loss| <= 3.02 u t, and shares off by a factor of at most exp(2 * 3.02 u t)."""
    inputs = inputs_at("logsumexp", inverse)
    derived = 3.02 * U * inverse
    _, (_, _, own_BK) = inputs.measured(dtype=torch.bfloat16)
    _, (_, _, expected_BK) = inputs.reference()
    off = torch.where(expected_BK > 0, own_BK / expected_BK, 1.0).log().abs().max().item()
    assert off < 2 * derived
    for row in range(0, 128, 9):
        inputs.weight_B = torch.zeros(128).index_fill(0, torch.tensor([row]), 1.0)
        total, _ = inputs.measured(dtype=torch.bfloat16)
        assert abs(total - inputs.reference()[0]) < derived


@pytest.mark.parametrize("inverse", INVERSES)
def test_a_hinge_errs_only_where_it_bends(inverse: float) -> None:
    """Derived: its slope differs only where the logit is within 3.02 u t of the bend. In norm the gradient is off by
    .065 in the worst case measured: the slope of 3 places in 1000 is 0 instead of 1 or the reverse."""
    inputs = inputs_at("hinge", inverse)
    _, gradients = inputs.measured(dtype=torch.bfloat16)
    _, expected = inputs.reference()
    logits_BC = inputs.anchor_BD.double() @ inputs.column_CD.double().T + inputs.own[:, None]
    at_bend_BC = (logits_BC.abs() < 3.02 * U * inverse) & ~mask_of(inputs.blocked, 128, 256)
    allowed_B = inputs.weight_B * (at_bend_BC * inputs.column_C).sum(dim=1)
    assert ((gradients[2] - expected[2]).abs() <= allowed_B + 1e-6).all()
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert (gradient - expected_gradient).norm() < 0.13 * expected_gradient.norm()
