"""Exact inner-product top-k over a whole catalogue, by blocks, in bounded memory.

Ties go to the lower row, whatever the block size: candidates are ranked by (score descending, row ascending).
"""

import torch
from torch import Tensor


def exact_topk(
    anchor_BD: Tensor,
    candidate_ND: Tensor,
    k: int,
    *,
    exclude_B: Tensor | None = None,
    block: int = 65_536,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """The k best candidates of each anchor.

    Args:
        exclude_B: one candidate row per anchor to leave out, -1 for none. block: candidates scored at a time.
        chunk: anchors at a time.

    Returns:
        scores_BK and rows_BK, best first; -inf and -1 where there are fewer than k.
    """
    scores, rows = [], []
    for start in range(0, len(anchor_BD), chunk):
        excluded = None if exclude_B is None else exclude_B[start : start + chunk]
        best = _topk_of_chunk(anchor_BD[start : start + chunk], candidate_ND, k, excluded, block)
        scores.append(best[0])
        rows.append(best[1])
    if not scores:
        empty = torch.zeros(0, k, device=anchor_BD.device)
        return empty, empty.long()
    return torch.cat(scores), torch.cat(rows)


def _topk_of_chunk(
    anchor_BD: Tensor, candidate_ND: Tensor, k: int, exclude_B: Tensor | None, block: int
) -> tuple[Tensor, Tensor]:
    device, count = anchor_BD.device, len(anchor_BD)
    best_BK = torch.full((count, k), float("-inf"), device=device)
    rows_BK = torch.full((count, k), -1, dtype=torch.int64, device=device)
    for start in range(0, len(candidate_ND), block):
        scores_BC = anchor_BD @ candidate_ND[start : start + block].T
        if exclude_B is not None:
            inside = (exclude_B >= start) & (exclude_B < start + scores_BC.shape[1])
            scores_BC[inside, exclude_B[inside] - start] = float("-inf")
        top_BK, at_BK = _topk_low_ties(scores_BC, min(k, scores_BC.shape[1]))
        # Earlier blocks stand left, so that a stable sort keeps lower rows first among ties.
        both = torch.cat([best_BK, top_BK], dim=1)
        order = both.sort(dim=1, descending=True, stable=True).indices[:, :k]
        best_BK = both.gather(1, order)
        rows_BK = torch.cat([rows_BK, at_BK + start], dim=1).gather(1, order)
    return best_BK, rows_BK.masked_fill(best_BK == float("-inf"), -1)


def _topk_low_ties(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` with ties to the lower column, both in what is chosen and in order."""
    values_BK, _ = scores_BC.topk(k, dim=1)
    threshold_B1 = values_BK[:, -1:]
    above_BC = scores_BC > threshold_B1
    ties_BC = scores_BC == threshold_B1
    wanted_B1 = k - above_BC.sum(dim=1, keepdim=True)
    # The first ties by column fill up what lies strictly above the threshold.
    chosen_BC = above_BC | (ties_BC & (ties_BC.cumsum(dim=1) <= wanted_B1))
    at_BK = chosen_BC.nonzero()[:, 1].view(-1, k)
    found_BK = scores_BC.gather(1, at_BK)
    order = found_BK.sort(dim=1, descending=True, stable=True).indices
    return found_BK.gather(1, order), at_BK.gather(1, order)
