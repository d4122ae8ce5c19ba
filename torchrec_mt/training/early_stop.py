"""What judges a validation, and early stop: remembers the best one and says when to give up."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from torchrec_mt.errors import UserError
from torchrec_mt.retrieval.metrics import METRICS


@dataclass
class EarlyStop:
    """Larger is better. `patience` validations in a row without a new best end the run; 0 never ends it."""

    patience: int
    best: float = -math.inf
    best_step: int = -1
    since_best: int = 0

    def update(self, value: float, step: int) -> bool:
        """Records a validation; whether it is a new best."""
        if value > self.best:
            self.best, self.best_step, self.since_best = value, step, 0
            return True
        self.since_best += 1
        return False

    @property
    def should_stop(self) -> bool:
        return self.patience > 0 and self.since_best >= self.patience


def check_metric(name: str, tasks: Collection[str]) -> None:
    """Is there a validation metric of this name? Asked before anything is written or trained.

    Args:
        tasks: trained tasks that have validation pairs.

    Raises:
        UserError: no such task or metric, or nothing to validate on.
    """
    if not tasks:
        raise UserError("no trained task has validation pairs: give dataset.split a larger valid_share, prepare again")
    known = [*METRICS, *(f"{task}/{metric}" for task in tasks for metric in METRICS)]
    if name not in known:
        raise UserError(f"trainer.metric = {name!r} is none of the validation metrics: {known}")


def chosen_metric(name: str, metrics: dict[str, float]) -> float:
    """The metric that judges a validation: one entry "TASK/METRIC", or the mean of METRIC over tasks.

    Raises:
        UserError: no such entry.
    """
    if name in metrics:
        return metrics[name]
    values = [value for key, value in metrics.items() if key.rpartition("/")[2] == name]
    if not values:
        raise UserError(f"trainer.metric = {name!r} is none of the validation metrics: {sorted(metrics)}")
    return sum(values) / len(values)
