"""The balancer of a run: the config's method with what it remembers. Equal input gives equal weights on every rank."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchrec_mt.balancing.choice import GradientMethod, weigh
from torchrec_mt.balancing.config import BalancingConfig
from torchrec_mt.balancing.gradients import Matrix
from torchrec_mt.balancing.losses import State, Vector
from torchrec_mt.balancing.methods import MetaBalance
from torchrec_mt.errors import UserError


class Balancer:
    """Weighs the tasks of a run step by step. `weights` are those in force, by task.

    Raises:
        UserError: a weight for a task that is not trained, or such a target.
    """

    def __init__(self, config: BalancingConfig, tasks: Sequence[str]) -> None:
        self.config, self.tasks = config, list(tasks)
        named = {f"weights names '{task}'": task for task in config.weights}
        if isinstance(config.method, MetaBalance):
            named[f"method.target is '{config.method.target}'"] = config.method.target
        for what, task in named.items():
            if task not in self.tasks:
                raise UserError(f"balancing.{what}, which is no trained task: {self.tasks}")
        self._own_T = np.array([config.weights.get(task, 1.0) for task in self.tasks])
        self._factor_T: Vector = np.ones(len(self.tasks))
        self._gram_TT: Matrix = np.zeros((len(self.tasks), len(self.tasks)))
        self._looks, self._state = 0, State()

    @property
    def weights(self) -> dict[str, float]:
        return dict(zip(self.tasks, (self._own_T * self._factor_T).tolist(), strict=True))

    def looks_at_gradients(self, step: int) -> bool:
        """Whether `update` after this step (from 0) wants the Gram matrix."""
        return isinstance(self.config.method, GradientMethod) and step % self.config.every == 0

    def update(self, losses_T: Sequence[float], gram_TT: Sequence[Sequence[float]] | None) -> None:
        """Takes the losses of a step into account, and the Gram matrix of the gradients of the unweighted losses.

        Args:
            gram_TT: where `looks_at_gradients` asks for it, else None.
        """
        if gram_TT is not None:
            average = self.config.average if self._looks else 0.0
            self._gram_TT = average * self._gram_TT + (1 - average) * np.array(gram_TT, float)
            self._looks += 1
        if gram_TT is not None or not isinstance(self.config.method, GradientMethod):
            self._factor_T, self._state = weigh(
                self.config.method,
                np.array(losses_T, float),
                self._gram_TT,
                self._state,
                tasks=self.tasks,
                looks=self._looks,
            )

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {
            "method": self.config.method.kind,
            "tasks": self.tasks,
            "factors": self._factor_T.tolist(),
            "gram": self._gram_TT.tolist(),
            "looks": self._looks,
            "state": self._state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave.

        Raises:
            UserError: it is another method's, or of other tasks.
        """
        for key, here in (("method", self.config.method.kind), ("tasks", self.tasks)):
            if state[key] != here:
                raise UserError(
                    f"the checkpoint's balancing has {key} {state[key]!r}, the config {here!r}: go on with the "
                    "balancing that it was trained with"
                )
        self._factor_T, self._gram_TT = np.array(state["factors"]), np.array(state["gram"])
        self._looks, self._state = state["looks"], state["state"]
