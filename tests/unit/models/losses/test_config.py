"""Settings of the losses: which one a task has, and what is refused."""

import pytest

from torchrec_mt.models.losses.config import BceLoss, LossConfig, MarginLoss, SoftmaxLoss


def test_a_task_has_its_own_loss_or_the_default() -> None:
    losses = LossConfig(default=MarginLoss(), tasks={"search": BceLoss()})
    assert losses.of("search") == BceLoss()
    assert losses.of("similar") == MarginLoss()
    assert LossConfig().of("similar") == SoftmaxLoss()


@pytest.mark.parametrize(("name", "value"), [("label_smoothing", 1.0), ("label_smoothing", -0.1)])
def test_a_softmax_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        SoftmaxLoss(**{name: value})


def test_grades_have_one_direction() -> None:
    with pytest.raises(ValueError, match="symmetric"):
        SoftmaxLoss(symmetric=True, grades="linear")


@pytest.mark.parametrize("margin", [0.0, -1.0, 2.1])
def test_a_margin_out_of_range_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        MarginLoss(margin=margin)
