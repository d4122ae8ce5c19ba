"""Static task weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torchrec_mt.errors import UserError, require


@dataclass(frozen=True, kw_only=True)
class BalancingConfig:
    """Weight of each task's loss; tasks not named weigh 1."""

    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for task, weight in self.weights.items():
            require(0 <= weight <= 1e6, f"weights.{task}", weight, "at least 0 and at most 1e6")


def static_weights(config: BalancingConfig, tasks: Sequence[str]) -> dict[str, float]:
    """The weight of every task.

    Raises:
        UserError: a weight for a task that is not trained.
    """
    for task in config.weights:
        if task not in tasks:
            raise UserError(f"balancing.weights names '{task}', which is no trained task: {list(tasks)}")
    return {task: config.weights.get(task, 1.0) for task in tasks}
