"""Static task weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torchrec_mt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BalancingConfig:
    """Weight of each task's loss; tasks not named weigh 1."""

    weights: dict[str, float] = field(default_factory=dict)


def static_weights(config: BalancingConfig, tasks: Sequence[str]) -> dict[str, float]:
    """The weight of every task.

    Raises:
        UserError: a weight for a task that is not trained, or a negative one.
    """
    for task, weight in config.weights.items():
        if task not in tasks:
            raise UserError(f"balancing.weights names '{task}', which is no trained task: {list(tasks)}")
        if not weight >= 0:
            raise UserError(f"balancing.weights.{task} = {weight} must be 0 or more")
    return {task: config.weights.get(task, 1.0) for task in tasks}
