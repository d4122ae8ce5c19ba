"""Every loss by numbers a reader can check: one anchor, cosines and counts given, the expected value a formula."""

import math
from dataclasses import replace
from math import e, exp, log

import pytest
import torch

from tests.unit.models.losses.comparisons import one_anchor, random_comparison
from torchrec_mt.models.losses.config import BceLoss, Loss, MarginLoss, SoftmaxLoss
from torchrec_mt.models.losses.terms import Comparison, task_loss

LOSSES = [SoftmaxLoss(), SoftmaxLoss(label_smoothing=0.1), BceLoss(), MarginLoss()]
LN3 = log(3)


def value(loss: Loss, compared: Comparison) -> float:
    return task_loss(loss, compared, torch.float32).item()


def near(expected: float) -> object:
    return pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_softmax() -> None:
    # Logits ln 3 and 0: the pair's share is 3 / (3 + 1).
    compared = one_anchor(1.0, [0.0], inverse_temperature=LN3, catalogue=2)
    assert value(SoftmaxLoss(), compared) == near(-log(3 / 4) / log(2))


def test_softmax_divides_by_the_log_of_the_catalogue_or_of_what_is_there() -> None:
    compared = one_anchor(1.0, [0.0, 0.0], private=[0.0], inverse_temperature=LN3, catalogue=100)
    assert value(SoftmaxLoss(), compared) == near(-log(3 / 6) / log(100))
    assert value(SoftmaxLoss(), replace(compared, corrected=False)) == near(-log(3 / 6) / log(4))


def test_softmax_counts_a_candidate_expected_twice_half() -> None:
    # Two copies, expected twice each, are together one; a candidate expected every fourth time is four.
    once = one_anchor(1.0, [0.5], catalogue=2)
    copies = one_anchor(1.0, [0.5, 0.5], counts=[2, 2], catalogue=2)
    rare = one_anchor(1.0, [0.5], counts=[1 / 4], catalogue=2)
    assert value(SoftmaxLoss(), once) == near(log(1 + exp(-0.5)) / log(2))
    assert value(SoftmaxLoss(), copies) == near(log(1 + exp(-0.5)) / log(2))
    assert value(SoftmaxLoss(), rare) == near(log(1 + 4 * exp(-0.5)) / log(2))


def test_softmax_refined_and_standard_positive() -> None:
    # The positive is expected every third time. Refined: it stands for itself, 1 of 1 + 2. Standard: for 3 of 3 + 2.
    refined = one_anchor(0.0, [0.0], counts=[1 / 2], catalogue=2)
    standard = one_anchor(0.0, [0.0], counts=[1 / 2], positive_count=1 / 3, catalogue=2)
    assert value(SoftmaxLoss(), refined) == near(-log(1 / 3) / log(2))
    assert value(SoftmaxLoss(), standard) == near(-log(3 / 5) / log(2))


def test_softmax_private_negatives() -> None:
    # One taken every second time stands for 2; one that is missing (count infinite) for none.
    compared = one_anchor(0.0, [0.0], private=[1.0, 0.5], private_counts=[1 / 2, math.inf], catalogue=2)
    assert value(SoftmaxLoss(), compared) == near(log(1 + 1 + 2 * e) / log(2))


def test_softmax_label_smoothing() -> None:
    # The mean cosine: 1 for the pair, 2 * 0.5 for a column that stands for two, 3 * 0.25 for a private one; of six. The
    # blocked column is not among them.
    compared = one_anchor(
        1.0, [0.5, 0.9], counts=[1 / 2, 1], blocked=[1], private=[0.25], private_counts=[1 / 3], catalogue=2
    )
    mean = (1 + 2 * 0.5 + 3 * 0.25) / 6
    total = log(e + 2 * exp(0.5) + 3 * exp(0.25))
    assert value(SoftmaxLoss(label_smoothing=0.2), compared) == near((total - 0.8 - 0.2 * mean) / log(2))


def test_bce() -> None:
    # Bias ln 4 cancels -log N. Pair: softplus(-ln 3) = log(4/3). Columns: softplus(ln 3) = log 4, standing for two, and
    # a private one at 0, log 2, standing for three.
    compared = one_anchor(
        1.0,
        [1.0],
        counts=[1 / 2],
        private=[0.0],
        private_counts=[1 / 3],
        inverse_temperature=LN3,
        bias=log(4),
        catalogue=4,
    )
    assert value(BceLoss(), compared) == near((log(4 / 3) + 2 * log(4) + 3 * log(2)) / (log(4) + 1))


def test_bce_without_correction_counts_the_columns_as_the_catalogue() -> None:
    # Two columns stand for 6 candidates; one is blocked. Without bias the logit of cosine 0 is -log 6.
    compared = one_anchor(0.0, [0.0, 0.0], blocked=[0], catalogue=6, corrected=False)
    assert value(BceLoss(), compared) == near((log(1 + 6) + 3 * log(1 + 1 / 6)) / (log(6) + 1))


def test_margin() -> None:
    # Closer than the margin of 0.2 by 0.3, 0.1 and not at all; then the first one stands for two.
    once = one_anchor(0.5, [0.6, 0.4, 0.0])
    twice = one_anchor(0.5, [0.6, 0.4, 0.0], counts=[1 / 2, 1, 1])
    assert value(MarginLoss(), once) == near((0.3 + 0.1 + 0) / 3 / 0.2)
    assert value(MarginLoss(), twice) == near((2 * 0.3 + 0.1 + 0) / 4 / 0.2)


def test_margin_private_negatives_and_blocked_columns() -> None:
    compared = one_anchor(
        0.5, [0.6, 1.0], blocked=[1], private=[0.5, 0.9], private_counts=[1 / 3, math.inf], inverse_temperature=50.0
    )
    assert value(MarginLoss(margin=0.4), compared) == near((0.5 + 3 * 0.4) / 4 / 0.4)


@pytest.mark.parametrize("loss", LOSSES)
def test_pairs_weigh_by_their_weights(loss: Loss) -> None:
    both = replace(random_comparison(0, 2, 6, 1), weight_B=torch.tensor([0.75, 0.25]))
    first, second = (replace(both, weight_B=torch.tensor(weight)) for weight in [[1.0, 0.0], [0.0, 1.0]])
    assert value(loss, both) == near(0.75 * value(loss, first) + 0.25 * value(loss, second))


def untrained(**changes: object) -> Comparison:
    """All cosines 0, and columns that stand for exactly the 99 other candidates: 10 expected 10 / 99 times each."""
    arguments = {"counts": [10 / 99] * 10, "catalogue": 100} | changes
    return one_anchor(0.0, [0.0] * 10, **arguments)  # type: ignore[arg-type]


def test_an_untrained_softmax_costs_one() -> None:
    assert value(SoftmaxLoss(), untrained()) == near(1.0)
    assert value(SoftmaxLoss(label_smoothing=0.3), untrained()) == near(1.0)
    # Without correction, and one of the ten columns the pair's own: 1 + 9 are compared, 11 counted.
    plain = untrained(counts=[1] * 10, blocked=[0], corrected=False)
    assert value(SoftmaxLoss(), plain) == near(log(10) / log(11))
    # The standard form starts lower, the lower the rarer the positive.
    assert value(SoftmaxLoss(), untrained(positive_count=0.1)) == near(log(1 + 99 * 0.1) / log(100))


def test_an_untrained_bce_costs_almost_one() -> None:
    # log(1 + N) for the pair, log(1 + 1/N) for each of the others; the scale is their sum's limit.
    assert value(BceLoss(), untrained()) == near((log(101) + 99 * log(1 + 1 / 100)) / (log(100) + 1))
    assert value(BceLoss(), untrained()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("margin", [0.2, 1.5])
def test_an_untrained_margin_costs_one(margin: float) -> None:
    assert value(MarginLoss(margin=margin), untrained()) == near(1.0)


@pytest.mark.parametrize(
    "compared",
    [
        one_anchor(0.3, [0.5, 0.2], counts=[1 / 3, 2], blocked=[0, 1], catalogue=100),
        one_anchor(0.3, [], catalogue=100),
        one_anchor(0.3, [], private=[0.5], private_counts=[math.inf], catalogue=100),
        one_anchor(0.3, [0.3], blocked=[0], catalogue=1),
        one_anchor(0.3, [0.3], blocked=[0], catalogue=1, corrected=False),
    ],
    ids=["all blocked", "no columns", "private missing", "one candidate", "one candidate, uncorrected"],
)
def test_nothing_to_compare_with(compared: Comparison) -> None:
    assert value(SoftmaxLoss(), compared) == near(0.0)
    assert value(SoftmaxLoss(label_smoothing=0.1), compared) == near(0.0)
    assert value(MarginLoss(), compared) == near(0.0)
    size = compared.catalogue
    assert value(BceLoss(), compared) == near(log(1 + exp(-0.3) * size) / (log(size) + 1))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("anchors", "columns", "private"), [(0, 4, 2), (0, 0, 0), (3, 0, 0), (3, 4, 0)])
def test_empty_sides_give_a_finite_loss_and_gradient(loss: Loss, anchors: int, columns: int, private: int) -> None:
    compared = random_comparison(0, anchors, columns, private)
    total = task_loss(loss, compared, torch.float32)
    total.backward()
    assert total.isfinite()
    for vector in [compared.anchor_BD, compared.positive_BD, compared.private_BHD]:
        assert vector.grad is None or (vector.grad.shape == vector.shape and vector.grad.isfinite().all())
    if anchors == 0:
        assert total == 0
