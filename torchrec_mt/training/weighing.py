"""Weighing the tasks' losses in every step, and what a logged step tells of it."""

import math
from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.errors import UserError
from torchrec_mt.models.two_tower import TwoTower, Vectors
from torchrec_mt.training.cut import CutVectors, GramMatrix, told


class Weighing:
    """In a step: `begin`, `take` every batch before its backward, `settle` once. All are called on every rank.

    With one batch to a step its backward comes after `settle`, by weights that know the batch. Of several batches each
    has its backward before the next is computed, so they are weighed by what the steps before have settled.

    Args:
        model: the plain model inside DDP.
    """

    def __init__(self, balancer: Balancer, model: TwoTower) -> None:
        self.balancer, self._model = balancer, model
        self._step = 0
        self._gram: GramMatrix | None = None
        self._used: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def begin(self, step: int, *, logs: bool) -> None:
        """Begins a step.

        Args:
            step: counted from 0. logs: whether the gradients are to be told of, too. That changes no weight.
        """
        looks = logs or self.balancer.looks_at_gradients(step)
        self._step, self._gram = step, GramMatrix(self.balancer.config.cut, self._model) if looks else None

    def take(self, cut: CutVectors, losses: Mapping[str, Tensor], inside: Vectors) -> None:
        """Looks at the gradients of a batch, if this step does.

        Args:
            losses: of this rank. inside: the vectors from inside DDP.
        """
        if self._gram is not None:
            self._gram.take(cut, losses, inside)

    def settle(self, losses: Mapping[str, float]) -> None:
        """Gives losses (those of all ranks' batches) and gradients of the step to the balancer.

        Raises:
            UserError: a gradient that is no finite number.
        """
        gram = self._gram.result().tolist() if self._gram is not None else None
        if gram is not None:
            bad = [task for row, task in enumerate(losses) if not all(map(math.isfinite, gram[row]))]
            if bad:
                raise UserError(
                    f"the gradients of {', '.join(bad)} at step {self._step + 1} are no finite numbers, though the "
                    "losses are: lower optim.table_rate or optim.dense_rate",
                    exit_code=1,
                )
            self._told = told(gram, list(losses))
        looks = self.balancer.looks_at_gradients(self._step)
        self.balancer.update(list(losses.values()), gram if looks else None)

    def weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum of the losses by the weights in force."""
        self._used = self.balancer.weights
        return reduce(torch.add, (self._used[name] * loss for name, loss in losses.items()))

    def told(self) -> dict[str, float]:
        """Of a step that logs: the weights that it used, lengths and cosines of its gradients, by name."""
        return {f"weight/{task}": value for task, value in self._used.items()} | self._told
