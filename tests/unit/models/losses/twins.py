"""Slow twins: the same losses written over the whole B x C matrix, in float64, with nothing but autograd.

Legend: B anchors, C columns, K private logits, H private columns, D width.
"""

import math
from dataclasses import fields, replace

import torch
from torch import Tensor

from torchrec_mt.models.losses.blocked import Blocked
from torchrec_mt.models.losses.config import BceLoss, Loss, MarginLoss, SoftmaxLoss
from torchrec_mt.models.losses.terms import Comparison


def mask_of(blocked: Blocked, rows: int, columns: int) -> Tensor:
    """The blocked places as a matrix."""
    mask_BC = torch.zeros(rows, columns, dtype=torch.bool)
    mask_BC[blocked.row_L, blocked.column_L] = True
    return mask_BC


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), without torch's shortcut for large x."""
    return torch.logaddexp(x, torch.zeros_like(x))


def logsumexp_twin(
    anchor_BD: Tensor, column_CD: Tensor, private_BK: Tensor, offset_C: Tensor, weight_B: Tensor, blocked: Blocked
) -> Tensor:
    """`weighted_logsumexp`, the formula of its docstring."""
    logits_BC = anchor_BD @ column_CD.T + offset_C
    logits_BC = logits_BC.masked_fill(mask_of(blocked, *logits_BC.shape), -math.inf)
    return weight_B @ torch.cat([private_BK, logits_BC], dim=1).logsumexp(dim=1)


def pairwise_twin(
    anchor_BD: Tensor,
    column_CD: Tensor,
    shift_B: Tensor,
    column_weight_C: Tensor,
    weight_B: Tensor,
    blocked: Blocked,
    shape: str,
) -> Tensor:
    """`weighted_pairwise`, the formula of its docstring."""
    logits_BC = anchor_BD @ column_CD.T + shift_B[:, None]
    value_BC = softplus(logits_BC) if shape == "softplus" else logits_BC.clamp(min=0)
    value_BC = value_BC.masked_fill(mask_of(blocked, *logits_BC.shape), 0.0)
    return weight_B @ value_BC @ column_weight_C


def task_twin(loss: Loss, compared: Comparison) -> Tensor:
    """`task_loss`, written from the docstrings: each anchor's columns, and what each of them stands for."""
    cosine_BC = compared.anchor_BD @ compared.column_CD.T
    cosine_BH = (compared.anchor_BD[:, None] * compared.private_BHD).sum(dim=2)
    positive_B = (compared.anchor_BD * compared.positive_BD).sum(dim=1)
    open_BC = ~mask_of(compared.blocked, *cosine_BC.shape)
    # Of how many candidates each column is one: 1 / count, nothing where blocked.
    times_BC = open_BC * (-compared.log_count_C).exp()
    times_BH = (-compared.private_log_count_BH).exp()
    inverse, catalogue = compared.inverse_temperature, compared.catalogue
    match loss:
        case SoftmaxLoss(label_smoothing=smoothing):
            target_B = inverse * positive_B - compared.positive_log_count_B
            sum_B = target_B.exp() + (times_BC * (inverse * cosine_BC).exp()).sum(dim=1)
            sum_B = sum_B + (times_BH * (inverse * cosine_BH).exp()).sum(dim=1)
            mean_B = positive_B + (times_BC * cosine_BC).sum(dim=1) + (times_BH * cosine_BH).sum(dim=1)
            mean_B = mean_B / (1 + times_BC.sum(dim=1) + times_BH.sum(dim=1))
            loss_B = sum_B.log() - (1 - smoothing) * target_B - smoothing * inverse * mean_B
            there = catalogue if compared.corrected else cosine_BC.shape[1] + cosine_BH.shape[1] + 1
            scale = math.log(max(2, there))
        case BceLoss():
            shift = compared.bias - math.log(catalogue)
            every = 1.0 if compared.corrected else catalogue / max(1, cosine_BC.shape[1])
            loss_B = softplus(-inverse * positive_B - shift)
            loss_B = loss_B + every * (times_BC * softplus(inverse * cosine_BC + shift)).sum(dim=1)
            loss_B = loss_B + (times_BH * softplus(inverse * cosine_BH + shift)).sum(dim=1)
            scale = math.log(catalogue) + 1
        case MarginLoss(margin=margin):
            shift_B1 = margin - positive_B[:, None]
            loss_B = (times_BC * (cosine_BC + shift_B1).clamp(min=0)).sum(dim=1)
            loss_B = loss_B + (times_BH * (cosine_BH + shift_B1).clamp(min=0)).sum(dim=1)
            loss_B = loss_B / (times_BC.sum(dim=1) + times_BH.sum(dim=1)).clamp(min=1e-12)
            scale = margin
    return compared.weight_B @ loss_B / scale


def doubled(compared: Comparison) -> Comparison:
    """The same in float64, sharing no graph."""
    values = {field.name: getattr(compared, field.name) for field in fields(compared)}
    changed = {name: value.detach().double() for name, value in values.items() if isinstance(value, Tensor)}
    return replace(compared, **changed)
