"""The cut of a step's graph between towers and losses, where tasks' gradients are looked at before the one backward.

Losses are computed of a copy of the vectors that is a leaf. So a task's gradient at the vectors costs its loss's
backward alone, which is a product with what the loss's forward made; from there it goes on to the entity vectors or to
the weights of the towers' last layer, and no further. It never comes near a table or to what DDP gave out: a backward
there is an update, and with a static graph DDP counts it.

Legend: E entities, D width, T tasks, R numbers of a gradient at the cut.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from torchrec_mt.balancing.config import Cut
from torchrec_mt.distributed.collectives import rank_and_size, sum_over_ranks
from torchrec_mt.models.two_tower import TwoTower, Vectors


class Inside:
    """While it is open, notes the vectors that the model's forward makes, as they are before DDP hands them out."""

    vectors: Vectors

    def __init__(self, model: TwoTower) -> None:
        self._model = model

    def __enter__(self) -> "Inside":
        self._handle = self._model.register_forward_hook(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _note(self, model: nn.Module, arguments: object, vectors: Vectors) -> None:
        self.vectors = vectors


class CutVectors:
    """The vectors of a batch, cut off from the towers.

    `leaves` are what losses are to be computed of.

    Args:
        vectors: what the model gave, and the backward goes into.
    """

    def __init__(self, vectors: Vectors) -> None:
        self._given = tensors_of(vectors)
        self._leaves = [tensor.detach().requires_grad_() for tensor in self._given]
        left = iter(self._leaves)
        parts = [{name: next(left) for name in part} for part in vectors.for_losses()]
        self.leaves = Vectors._make([*parts, {}])

    def backward(self, loss: Tensor) -> None:
        """The one backward of the step, through losses and towers into the tables."""
        gradients = torch.autograd.grad(loss, self._leaves, materialize_grads=True)
        torch.autograd.backward(self._given, gradients)

    def gradients(self, losses: Mapping[str, Tensor], inside: Vectors, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of all tasks' losses, gradient_TR of each of `inputs`. Collective.

        Args:
            inside: the vectors again, from inside DDP. inputs: what to go back to, weights or entity vectors.
        """
        by_task = [self._gradients(loss, inside, inputs) for loss in losses.values()]
        return [torch.stack([gradient.flatten() for gradient in tasks]) for tasks in zip(*by_task, strict=True)]

    def _gradients(self, loss: Tensor, inside: Vectors, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        at_vectors = torch.autograd.grad(loss, self._leaves, retain_graph=True, allow_unused=True)
        reached = [
            (vector, gradient)
            for vector, gradient in zip(tensors_of(inside), at_vectors, strict=True)
            if gradient is not None
        ]
        outputs, gradients = zip(*reached, strict=True)
        return torch.autograd.grad(
            outputs, inputs, gradients, retain_graph=True, allow_unused=True, materialize_grads=True
        )


class GramMatrix:
    """Sums up the Gram matrix of the tasks' gradients over a step's batches and all ranks.

    Ranks and batches hold rows of their own at the vectors, where Gram matrices add up; at the weights of a tower
    gradients do, and meet before they are multiplied.
    """

    def __init__(self, cut: Cut, model: TwoTower) -> None:
        self._cut, self._model = cut, model
        self._sum: Tensor | None = None
        self._batches = 0

    def take(self, cut: CutVectors, losses: Mapping[str, Tensor], inside: Vectors) -> None:
        """Takes in a batch: before its backward."""
        match self._cut:
            case "vectors":
                by_entity = cut.gradients(losses, inside, list(inside.entity.values()))
                found = torch.stack([gradient_TR @ gradient_TR.T for gradient_TR in by_entity]).sum(dim=0)
            case "tower":
                found = torch.cat(cut.gradients(losses, inside, self._model.last_layers()), dim=1)
        self._sum = found if self._sum is None else self._sum + found
        self._batches += 1

    def result(self) -> Tensor:
        """gram_TT of the gradients of the mean of all batches' losses, the same on every rank; float64. Collective."""
        assert self._sum is not None
        sum_TR = sum_over_ranks(self._sum).double()
        _, ranks = rank_and_size()
        count = ranks * self._batches
        return (sum_TR if self._cut == "vectors" else sum_TR @ sum_TR.T) / count**2


def tensors_of(vectors: Vectors) -> list[Tensor]:
    """All that losses read, in order."""
    return [tensor for part in vectors.for_losses() for tensor in part.values()]


def told(gram_TT: Sequence[Sequence[float]], tasks: Sequence[str]) -> dict[str, float]:
    """Lengths of the tasks' gradients, and the cosine of each two, by the name under which they are logged."""
    length = {task: gram_TT[row][row] ** 0.5 for row, task in enumerate(tasks)}
    found = {f"gradient/{task}": value for task, value in length.items()}
    for row, task in enumerate(tasks):
        for column, other in enumerate(tasks[:row]):
            if length[task] and length[other]:
                found[f"cosine/{other}/{task}"] = gram_TT[row][column] / (length[task] * length[other])
    return found
