"""Schedules, early stop, choice of the metric."""

import pytest

from torchrec_mt.errors import UserError
from torchrec_mt.training.early_stop import EarlyStop, chosen_metric
from torchrec_mt.training.schedule import ConstantSchedule, CosineSchedule, LinearSchedule, Schedule, rate_factor


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        (CosineSchedule(warmup_steps=4, final_rate=0.2), {29: 0.2 + 0.8 * (1 + 0.5**0.5) / 2, 54: 0.6, 104: 0.2}),
        (LinearSchedule(warmup_steps=4, final_rate=0.2), {29: 0.8, 54: 0.6, 104: 0.2}),
        (ConstantSchedule(warmup_steps=4), {29: 1.0, 54: 1.0, 104: 1.0}),
    ],
)
def test_rate_warms_up_then_goes_to_its_end(schedule: Schedule, after: dict[int, float]) -> None:
    assert [rate_factor(schedule, step, 104) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate_factor(schedule, 4, 104) == 1.0
    assert {step: rate_factor(schedule, step, 104) for step in after} == pytest.approx(after)
    assert rate_factor(schedule, 200, 104) == rate_factor(schedule, 104, 104), "a step beyond the end"


def test_early_stop_counts_validations_without_a_new_best() -> None:
    stop = EarlyStop(patience=2)
    assert [stop.update(value, step) for step, value in enumerate([0.1, 0.3, 0.3, 0.2])] == [True, True, False, False]
    assert stop.should_stop
    assert (stop.best, stop.best_step) == (0.3, 1)
    assert not EarlyStop(patience=0, since_best=100).should_stop


def test_chosen_metric() -> None:
    metrics = {"a/recall@10": 0.2, "b/recall@10": 0.4, "a/mrr@10": 0.9}
    assert chosen_metric("recall@10", metrics) == pytest.approx(0.3)
    assert chosen_metric("a/mrr@10", metrics) == 0.9
    with pytest.raises(UserError, match=r"trainer.metric = 'recall@7'"):
        chosen_metric("recall@7", metrics)
