"""Inputs of the losses: one anchor in the plane whose cosines a reader can name, or many random ones.

Legend: B anchors, C columns, H private columns, D width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec_mt.models.losses.blocked import Blocked
from torchrec_mt.models.losses.terms import Comparison


def at_cosines(cosines: Sequence[float]) -> Tensor:
    """Vectors of the plane with these cosines to (1, 0)."""
    return torch.tensor([[cosine, math.sqrt(1 - cosine**2)] for cosine in cosines]).reshape(-1, 2)


def one_anchor(
    positive: float = 0.0,
    columns: Sequence[float] = (),
    *,
    counts: Sequence[float] | None = None,
    blocked: Sequence[int] = (),
    private: Sequence[float] = (),
    private_counts: Sequence[float] | None = None,
    positive_count: float = 1.0,
    inverse_temperature: float = 1.0,
    bias: float = 0.0,
    catalogue: int = 1,
    corrected: bool = True,
) -> Comparison:
    """One anchor of weight 1, given by the cosines and expected counts of what it is compared with."""
    counts = [1.0] * len(columns) if counts is None else counts
    private_counts = [1.0] * len(private) if private_counts is None else private_counts
    return Comparison(
        anchor_BD=torch.tensor([[1.0, 0.0]]),
        positive_BD=at_cosines([positive]),
        weight_B=torch.ones(1),
        column_CD=at_cosines(columns),
        log_count_C=torch.tensor(counts).reshape(-1).log(),
        blocked=Blocked(torch.zeros(len(blocked), dtype=torch.int64), torch.tensor(blocked, dtype=torch.int64)),
        learning=len(columns),
        private_BHD=at_cosines(private)[None],
        private_log_count_BH=torch.tensor(private_counts).reshape(1, -1).log(),
        positive_log_count_B=torch.tensor([positive_count]).log(),
        inverse_temperature=torch.tensor(inverse_temperature),
        bias=torch.tensor(bias),
        catalogue=catalogue,
        corrected=corrected,
    )


def unit(rng: torch.Generator, *shape: int) -> Tensor:
    """Random vectors of length 1."""
    return torch.nn.functional.normalize(torch.randn(*shape, generator=rng), dim=-1)


def near(rng: torch.Generator, vector_BD: Tensor) -> Tensor:
    """Unit vectors with a cosine of about 0.7 to the given ones."""
    return torch.nn.functional.normalize(vector_BD + unit(rng, *vector_BD.shape), dim=-1)


def random_blocked(rng: torch.Generator, rows: int, columns: int, share: float) -> Blocked:
    """This share of all places, chosen at random; all of them for a share of 1."""
    row_L, column_L = (torch.rand(rows, columns, generator=rng) < share).nonzero().unbind(dim=1)
    return Blocked(row_L, column_L)


def random_comparison(
    seed: int,
    anchors: int,
    columns: int,
    private: int,
    *,
    width: int = 5,
    blocked_share: float = 0.2,
    memory: int = 0,
    standard: bool = False,
    corrected: bool = True,
    inverse_temperature: float = 5.0,
    catalogue: int = 100,
) -> Comparison:
    """Random vectors, weights and counts, all that is learned a leaf; the last `memory` columns take no gradient."""
    rng = torch.Generator().manual_seed(seed)
    anchor_BD = unit(rng, anchors, width)
    learning_CD = unit(rng, columns - memory, width).requires_grad_()
    weight_B = torch.rand(anchors, generator=rng)
    log_count_C = torch.randn(columns, generator=rng) * corrected
    log_count_BH = torch.randn(anchors, private, generator=rng) * corrected
    absent_BH = torch.rand(anchors, private, generator=rng) < 0.3
    return Comparison(
        anchor_BD=anchor_BD.requires_grad_(),
        positive_BD=near(rng, anchor_BD.detach()).requires_grad_(),
        weight_B=weight_B / weight_B.sum().clamp(min=1e-12),
        column_CD=torch.cat([learning_CD, unit(rng, memory, width)]),
        log_count_C=log_count_C,
        blocked=random_blocked(rng, anchors, columns, blocked_share),
        learning=columns - memory,
        private_BHD=unit(rng, anchors, private, width).requires_grad_(),
        private_log_count_BH=log_count_BH.masked_fill(absent_BH, math.inf),
        positive_log_count_B=torch.randn(anchors, generator=rng) * standard,
        inverse_temperature=torch.tensor(inverse_temperature, requires_grad=True),
        bias=torch.tensor(0.3, requires_grad=True),
        catalogue=catalogue,
        corrected=corrected,
    )
