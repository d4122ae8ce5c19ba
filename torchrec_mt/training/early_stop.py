"""Early stop: remembers the best validation and says when to give up."""

import math
from dataclasses import dataclass


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
