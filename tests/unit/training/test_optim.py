"""Schedule, early stop, choice of the metric."""

import pytest

from torchrec_mt.errors import UserError
from torchrec_mt.training.early_stop import EarlyStop
from torchrec_mt.training.optim import OptimConfig, rate_factor
from torchrec_mt.training.trainer import chosen_metric


def test_rate_warms_up_then_decays_to_its_end() -> None:
    config = OptimConfig(warmup_steps=4, final_rate=0.2)
    assert [rate_factor(config, step, 104) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate_factor(config, 4, 104) == 1.0
    assert rate_factor(config, 54, 104) == pytest.approx(0.6)
    assert rate_factor(config, 104, 104) == pytest.approx(0.2)


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
