"""The loss of one task from what its anchors are compared with.

Every loss is divided by its natural scale, what an untrained model gives, so that tasks weigh alike from the start.

Legend: B anchors of this rank, C columns (shared by all anchors), H private columns of an anchor (its own hard
negatives), D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrec_mt.models.losses.blocked import Blocked, row_sums
from torchrec_mt.models.losses.config import BceLoss, Loss, MarginLoss, SoftmaxLoss
from torchrec_mt.models.losses.walk import weighted_logsumexp, weighted_pairwise


@dataclass(frozen=True)
class Comparison:
    """Anchors of one task on this rank, and what they are compared with. All vectors have length 1.

    Args:
        anchor_BD, positive_BD: the pairs. weight_B: their weights, divided by the sum over all ranks.
        column_CD: candidates of all ranks and drawn negatives. log_count_C: log of how many copies of the column's id
            are expected (logQ, 0 without correction), less the log of how many copies this column stands for.
        blocked: columns that are no negatives of an anchor: its own candidate, itself, its other known candidates, its
            private negatives.
        learning: the first columns, as many as take a gradient (those of a memory take none).
        private_BHD, private_log_count_BH: an anchor's own negatives; log count infinite where it has fewer.
        positive_log_count_B: what is taken off the positive's logit: 0, since it is always there ("refined"), or its
            logQ ("standard").
        inverse_temperature, bias: of the task, scalars. catalogue: number of candidates. corrected: whether log counts
            make the columns stand for the catalogue.
    """

    anchor_BD: Tensor
    positive_BD: Tensor
    weight_B: Tensor
    column_CD: Tensor
    log_count_C: Tensor
    blocked: Blocked
    learning: int
    private_BHD: Tensor
    private_log_count_BH: Tensor
    positive_log_count_B: Tensor
    inverse_temperature: Tensor
    bias: Tensor | None
    catalogue: int
    corrected: bool


def task_loss(loss: Loss, compared: Comparison, dtype: torch.dtype) -> Tensor:
    """sum_b weight_b * loss_b / natural scale, a scalar; one direction of it (see `SoftmaxLoss.symmetric`).

    Args:
        dtype: of the B x C matrix products.
    """
    match loss:
        case SoftmaxLoss():
            return _softmax(loss, compared, dtype) / _log_candidates(compared)
        case BceLoss():
            return _bce(compared, dtype) / (math.log(compared.catalogue) + 1)
        case MarginLoss():
            return _margin(loss, compared, dtype) / loss.margin


def _log_candidates(compared: Comparison) -> Tensor | float:
    """log of how many candidates the denominator stands for."""
    if compared.corrected:
        return math.log(max(2, compared.catalogue))
    return (_all_copies(compared) + compared.private_BHD.shape[1] + 1).clamp(min=2).log()


def _all_copies(compared: Comparison) -> Tensor:
    """How many columns there are without correction, equal ones counted apart."""
    return (-compared.log_count_C).exp().sum()


def _scores(compared: Comparison) -> tuple[Tensor, Tensor]:
    """Cosines of the pairs and of the private columns: cosine_B, cosine_BH."""
    positive_B = (compared.anchor_BD * compared.positive_BD).sum(dim=1)
    return positive_B, torch.einsum("bd,bhd->bh", compared.anchor_BD, compared.private_BHD)


def _softmax(loss: SoftmaxLoss, compared: Comparison, dtype: torch.dtype) -> Tensor:
    """Sampled softmax (Bengio & Senecal 2008; for in-batch negatives Yi et al., RecSys 2019).

    A column expected q times stands for 1 / q of itself, so log q is taken off its logit and the sum over columns
    estimates the sum over the catalogue. The positive is not drawn but always there and stands for itself ("Correcting
    the LogQ correction", RecSys 2025, arXiv 2507.09331: this is their loss, sample weight included, written as one
    logarithm); taking its log q off as well is the usual, biased form.
    """
    inverse = compared.inverse_temperature
    positive_B, private_BH = _scores(compared)
    positive_logit_B = inverse * positive_B - compared.positive_log_count_B
    private_logit_BH = inverse * private_BH - compared.private_log_count_BH
    total = weighted_logsumexp(
        inverse * compared.anchor_BD,
        compared.column_CD,
        torch.cat([positive_logit_B[:, None], private_logit_BH], dim=1),
        -compared.log_count_C,
        compared.weight_B,
        compared.blocked,
        learning=compared.learning,
        dtype=dtype,
    )
    target_B = positive_logit_B
    if loss.label_smoothing > 0:
        mean_B = inverse * _mean_cosine(compared, positive_B, private_BH)
        target_B = (1 - loss.label_smoothing) * target_B + loss.label_smoothing * mean_B
    return total - compared.weight_B @ target_B


def _mean_cosine(compared: Comparison, positive_B: Tensor, private_BH: Tensor) -> Tensor:
    """Mean cosine over the catalogue without the blocked, estimated by columns weighing 1 / count: cosine_B.

    The sum over all columns is one vector's product; the few blocked places are taken off it again.
    """
    weight_C, weight_BH = (-compared.log_count_C).exp(), (-compared.private_log_count_BH).exp()
    row_L, column_L = compared.blocked.row_L, compared.blocked.column_L
    blocked_L = weight_C[column_L] * (compared.anchor_BD[row_L] * compared.column_CD[column_L]).sum(dim=1)
    rows = len(compared.anchor_BD)
    total_B = compared.anchor_BD @ (weight_C @ compared.column_CD) - row_sums(compared.blocked, blocked_L, rows)
    total_B = total_B + positive_B + (weight_BH * private_BH).sum(dim=1)
    return total_B / (1 + _open_weight(compared, weight_C) + weight_BH.sum(dim=1))


def _open_weight(compared: Comparison, weight_C: Tensor) -> Tensor:
    """Weight of the columns that are not blocked: weight_B."""
    rows = len(compared.anchor_BD)
    return weight_C.sum() - row_sums(compared.blocked, weight_C[compared.blocked.column_L], rows)


def _bce(compared: Comparison, dtype: torch.dtype) -> Tensor:
    """softplus(-u) of the pair plus the sum of softplus(u) over the catalogue, u = score - log N + bias."""
    assert compared.bias is not None
    inverse = compared.inverse_temperature
    positive_B, private_BH = _scores(compared)
    shift = compared.bias - math.log(compared.catalogue)
    # Without correction the columns still stand for the catalogue, all alike.
    scale = 1.0 if compared.corrected else compared.catalogue / _all_copies(compared).clamp(min=1)
    total = weighted_pairwise(
        inverse * compared.anchor_BD,
        compared.column_CD,
        shift.expand(len(positive_B)),
        scale * (-compared.log_count_C).exp(),
        compared.weight_B,
        compared.blocked,
        "softplus",
        learning=compared.learning,
        dtype=dtype,
    )
    softplus = torch.nn.functional.softplus
    own_B = softplus(-inverse * positive_B - shift)
    private_BH = (-compared.private_log_count_BH).exp() * softplus(inverse * private_BH + shift)
    return total + compared.weight_B @ (own_B + private_BH.sum(dim=1))


def _margin(loss: MarginLoss, compared: Comparison, dtype: torch.dtype) -> Tensor:
    """Mean over the catalogue of max(0, margin - cosine of the pair + cosine of the column)."""
    positive_B, private_BH = _scores(compared)
    shift_B = loss.margin - positive_B
    weight_C, weight_BH = (-compared.log_count_C).exp(), (-compared.private_log_count_BH).exp()
    weight_B = compared.weight_B / (_open_weight(compared, weight_C) + weight_BH.sum(dim=1)).clamp(min=1e-12)
    total = weighted_pairwise(
        compared.anchor_BD,
        compared.column_CD,
        shift_B,
        weight_C,
        weight_B,
        compared.blocked,
        "hinge",
        learning=compared.learning,
        dtype=dtype,
    )
    private_B = (weight_BH * (private_BH + shift_B[:, None]).relu()).sum(dim=1)
    # A margin knows no temperature; a gradient of 0 lets it take part in the step, as DDP expects of a parameter.
    return total + weight_B @ private_B + 0.0 * compared.inverse_temperature
