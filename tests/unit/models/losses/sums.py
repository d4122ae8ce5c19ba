"""The two sums of `walk.py` on random input, beside their twins over the whole matrix.

Legend: B anchors, C columns, K private logits, D width.
"""

import math

import torch
from torch import Tensor

from tests.unit.models.losses.comparisons import near, random_blocked, unit
from tests.unit.models.losses.twins import logsumexp_twin, pairwise_twin
from torchrec_mt.models.losses.walk import weighted_logsumexp, weighted_pairwise

SHAPES = ["logsumexp", "softplus", "hinge"]


class Inputs:
    """Random unit vectors at a temperature; a positive near each anchor, some weights 0, some places blocked."""

    def __init__(
        self, shape: str, inverse: float, *, anchors: int = 29, columns: int = 41, width: int = 16, seed: int = 7
    ) -> None:
        rng = torch.Generator().manual_seed(seed)
        vector_BD = unit(rng, anchors, width)
        positive_BD = near(rng, vector_BD)
        self.shape = shape
        self.anchor_BD = inverse * vector_BD
        self.column_CD = torch.cat([positive_BD, unit(rng, columns, width)])[-columns:]
        cosine_B = (vector_BD * positive_BD).sum(dim=1)
        # What each anchor has of its own: logits of its positive and of two hard negatives, one missing; or a shift.
        match shape:
            case "logsumexp":
                self.own = inverse * cosine_B[:, None] - torch.tensor([0.0, 0.1 * inverse, math.inf])
            case "softplus":
                self.own = cosine_B - math.log(500)
            case "hinge":
                self.own = inverse * (0.6 - cosine_B)
        self.column_C = torch.rand(columns, generator=rng) + 0.1
        self.weight_B = torch.rand(anchors, generator=rng) / anchors
        self.weight_B[::5] = 0
        self.blocked = random_blocked(rng, anchors, columns, 0.1)
        self.leaves = (self.anchor_BD, self.column_CD, self.own)

    def fast(
        self,
        anchor_BD: Tensor,
        column_CD: Tensor,
        own: Tensor,
        *,
        learning: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        rest = (self.column_C.log(), self.weight_B) if self.shape == "logsumexp" else (self.column_C, self.weight_B)
        if self.shape == "logsumexp":
            return weighted_logsumexp(anchor_BD, column_CD, own, *rest, self.blocked, learning=learning, dtype=dtype)
        return weighted_pairwise(
            anchor_BD, column_CD, own, *rest, self.blocked, self.shape, learning=learning, dtype=dtype
        )

    def slow(self, anchor_BD: Tensor, column_CD: Tensor, own: Tensor) -> Tensor:
        column_C, weight_B = self.column_C.double(), self.weight_B.double()
        if self.shape == "logsumexp":
            return logsumexp_twin(anchor_BD, column_CD, own, column_C.log(), weight_B, self.blocked)
        return pairwise_twin(anchor_BD, column_CD, own, column_C, weight_B, self.blocked, self.shape)

    def reference(self) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients in float64 over the whole matrix."""
        leaves = [leaf.double().requires_grad_() for leaf in self.leaves]
        total = self.slow(*leaves)
        return total.detach(), list(torch.autograd.grad(total, leaves))

    def measured(
        self, *, learning: int | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, list[Tensor]]:
        leaves = [leaf.clone().requires_grad_() for leaf in self.leaves]
        total = self.fast(*leaves, learning=learning, dtype=dtype)
        return total.detach(), list(torch.autograd.grad(total, leaves))


def error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest entry of what is expected."""
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()
