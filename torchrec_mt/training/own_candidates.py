"""The objective of models whose candidates have a vector per task: each task's negatives are vectors of its own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchrec_mt.batch import Batch
from torchrec_mt.data.negatives import NegativesConfig
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.sharing.choice import Sharing, per_task_candidates
from torchrec_mt.models.two_tower import Vectors
from torchrec_mt.training.objective import Objective, TaskSides


def objective_for(
    sharing: Sharing,
    tasks: Mapping[str, TaskSides],
    losses: LossConfig,
    negatives: NegativesConfig,
    device: torch.device,
) -> Objective:
    """The objective of a model's architecture."""
    kind = OwnCandidatesObjective if per_task_candidates(sharing) else Objective
    return kind(tasks, losses, negatives, device)


class OwnCandidatesObjective(Objective):
    """An objective for each task, which takes the task's `Vectors.negative` for those of its candidate entity."""

    def __init__(
        self, tasks: Mapping[str, TaskSides], losses: LossConfig, negatives: NegativesConfig, device: torch.device
    ) -> None:
        super().__init__(tasks, losses, negatives, device)
        self._of = {task: Objective({task: sides}, losses, negatives, device) for task, sides in tasks.items()}

    def __call__(self, vectors: Vectors, batch: Batch, step: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for task, objective in self._of.items():
            own = {self.tasks[task].candidate: vectors.negative[task]} if task in vectors.negative else {}
            found |= objective(vectors._replace(negative=own), batch, step)
        return found

    def numbers(self) -> dict[str, Any]:
        told = [objective.numbers() for objective in self._of.values()]
        return {kind: {task: one for each in told for task, one in each[kind].items()} for kind in super().numbers()}

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor for each in self._of.values() for name, tensor in each.tensors().items()}

    def restore(self, numbers: Mapping[str, Any]) -> dict[str, Tensor]:
        super().restore(numbers)  # refuses what was remembered of other tasks
        found: dict[str, Tensor] = {}
        for task, objective in self._of.items():
            own = {kind: {name: one for name, one in told.items() if name == task} for kind, told in numbers.items()}
            found |= objective.restore(own)
        return found
