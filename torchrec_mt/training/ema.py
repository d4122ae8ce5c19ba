"""An exponential moving average of the dense weights: less noise of the last steps in what is judged and kept.

Tables are not averaged: a step touches few of their rows, an average would touch all and double their memory.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from torchrec_mt.errors import require


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An average over about the last 1 / (1 - decay) steps.

    Args:
        decay: weight of the average so far. At step t, from 1 on, it is at most (1 + t) / (10 + t), so that the start
            is soon forgotten (as in TensorFlow's ExponentialMovingAverage with `num_updates`).
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        require(0 < self.decay < 1, "decay", self.decay, "above 0 and below 1")


class MovingAverage:
    """The averages of some parameters, by name. Of parameters that are equal on all ranks they are equal, too.

    `averages` and `updates` (steps that are in them) are what a checkpoint keeps. Not to be read within `applied`.
    """

    def __init__(self, config: EmaConfig, parameters: Mapping[str, nn.Parameter]) -> None:
        self._decay, self._parameters, self.updates = config.decay, dict(parameters), 0
        self.averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the parameters as they are after a step."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.averages.values()), list(self._parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the parameters hold their averages: to judge or save the model, not to train it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)

    def start_over(self) -> None:
        """Averages of the parameters as they are now."""
        self.updates = 0
        for name, parameter in self._parameters.items():
            self.averages[name].copy_(parameter.detach())
