"""How the tasks of a run are weighed: the method, and what all methods have in common."""

from dataclasses import dataclass, field
from typing import Literal

from torchrec_mt.balancing.choice import GradientMethod, Method
from torchrec_mt.balancing.methods import Static
from torchrec_mt.errors import require, within

Cut = Literal["vectors", "tower"]


@dataclass(frozen=True, kw_only=True)
class BalancingConfig:
    """How the tasks' losses are weighed.

    Args:
        weights: what each task's weight by the method is multiplied by; tasks not named: 1.
        method: what weighs them.
        cut: where the tasks' gradients are taken: the entity vectors that towers put out, or the weights of the towers'
            last layer.
        every: steps between two looks at the gradients; weights are kept between. For methods that look at them.
        average: weight of the Gram matrices so far in their moving average; 0: the newest alone. For the same methods.
    """

    weights: dict[str, float] = field(default_factory=dict)
    method: Method = field(default_factory=Static)
    cut: Cut = "tower"
    every: int = 1
    average: float = 0.0

    def __post_init__(self) -> None:
        for task, weight in self.weights.items():
            require(0 <= weight <= 1e6, f"weights.{task}", weight, "at least 0 and at most 1e6")
            by_method = not isinstance(self.method, Static)
            remedy = f'above 0 with method "{self.method.kind}": leave the task out by trainer.tasks'
            require(weight > 0 or not by_method, f"weights.{task}", weight, remedy)
        within(self, 1, 1_000_000, "every")
        require(0 <= self.average < 1, "average", self.average, "from 0 to below 1")
        if not isinstance(self.method, GradientMethod):
            unread = f'as by default: method "{self.method.kind}" does not look at gradients'
            require(self.every == 1, "every", self.every, unread)
            require(self.average == 0, "average", self.average, unread)
