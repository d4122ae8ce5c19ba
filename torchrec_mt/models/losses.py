"""Losses: pure functions of tensors. What ranks gathered comes in; a loss never sees a rank.

Legend: B anchors of this rank, P pairs of all ranks, C columns (candidates of all ranks and uniform negatives), D
    width.
"""

import torch
from torch import Tensor


def blocked_columns(
    anchor_id_B: Tensor,
    pair_anchor_id_P: Tensor,
    pair_candidate_id_P: Tensor,
    column_id_C: Tensor,
    own_column_B: Tensor,
    *,
    same_entity: bool,
) -> Tensor:
    """Columns that are no negatives of an anchor: blocked_BC.

    Blocked are copies of its own candidate, every other candidate it is paired with in the batch of all ranks, and
    (where anchors and candidates are the same entity) the anchor itself. An anchor's own column is never blocked.
    """
    distinct, column_C = column_id_C.unique(return_inverse=True)
    known_BU = torch.zeros(len(anchor_id_B), len(distinct), dtype=torch.bool, device=anchor_id_B.device)
    row, pair = (anchor_id_B[:, None] == pair_anchor_id_P[None, :]).nonzero(as_tuple=True)
    known_BU[row, torch.searchsorted(distinct, pair_candidate_id_P[pair])] = True
    if same_entity:
        position_B = torch.searchsorted(distinct, anchor_id_B).clamp(max=len(distinct) - 1)
        row = (distinct[position_B] == anchor_id_B).nonzero(as_tuple=True)[0]
        known_BU[row, position_B[row]] = True
    blocked_BC = known_BU[:, column_C]
    blocked_BC[torch.arange(len(own_column_B), device=blocked_BC.device), own_column_B] = False
    return blocked_BC


def sampled_softmax(
    anchor_BD: Tensor,
    candidate_CD: Tensor,
    own_column_B: Tensor,
    log_count_C: Tensor,
    blocked_BC: Tensor,
    inverse_temperature: Tensor,
) -> Tensor:
    """Cross entropy of each anchor's own candidate among all columns, corrected for sampling: loss_B.

    A candidate that a batch is expected to hold q times stands for 1 / q of itself, so log q is taken off its logit
    and the sum over columns estimates the sum over the catalogue (Bengio & Senecal 2008; for in-batch negatives Yi et
    al., RecSys 2019).
    """
    logits_BC = inverse_temperature * (anchor_BD @ candidate_CD.T) - log_count_C
    logits_BC = logits_BC.masked_fill(blocked_BC, float("-inf"))
    return torch.nn.functional.cross_entropy(logits_BC, own_column_B, reduction="none")
