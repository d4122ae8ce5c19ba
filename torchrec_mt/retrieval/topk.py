"""Exact top-k by inner product: blocks of candidates, a running merge, never the whole B x N score matrix.

Stands between the vectors of the towers and every ranking; `metrics` and `evaluator` see only the rows found here.
Legend: B anchors, N candidates of the catalogue, D width, K cut-off.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

_SCORES_AT_ONCE = 1 << 24  # 64 MiB of float32 scores
_MAX_ANCHORS_AT_ONCE = 4096
# Narrower matrix products go to other kernels, which add up in another order (oneMKL: below 16 rows). Padded to this, a
# pair's score has the same bits whatever the block size.
_MIN_SIDE = 64


def exact_topk(
    anchor_BD: Tensor,
    candidate_ND: Tensor,
    k: int,
    *,
    exclude_B: Tensor | None = None,
    block: int = 65536,
) -> tuple[Tensor, Tensor]:
    """The k candidates of largest inner product per anchor, best first; equal scores by the lower row.

    Args:
        anchor_BD, candidate_ND: finite float32 vectors on one device.
        exclude_B: one candidate row per anchor to leave out (the anchor itself), -1 for none.
        block: candidates scored at a time; bounds the memory, changes nothing in the result.

    Returns:
        scores_BK (float32) and rows_BK (int64); where fewer than k candidates are left, -inf and -1.

    Raises:
        ValueError: k or block < 1, vectors that do not fit together, or vectors with NaN or infinity.
    """
    _check(anchor_BD, candidate_ND, k, exclude_B, block)
    num_anchors, num_candidates = len(anchor_BD), len(candidate_ND)
    scores_BK = anchor_BD.new_full((num_anchors, k), -torch.inf)
    rows_BK = torch.full((num_anchors, k), -1, dtype=torch.int64, device=anchor_BD.device)
    chunk = min(max(_MIN_SIDE, _SCORES_AT_ONCE // max(1, min(block, num_candidates))), _MAX_ANCHORS_AT_ONCE)
    for low in range(0, num_anchors, chunk):
        part = slice(low, low + chunk)
        excluded = None if exclude_B is None else exclude_B[part]
        for start in range(0, num_candidates, block):
            scores_BC = _scores(anchor_BD[part], candidate_ND[start : start + block])
            if excluded is not None:
                _leave_out(scores_BC, excluded - start)
            found_BK, columns_BK = stable_topk(scores_BC, min(k, scores_BC.shape[1]))
            # What was found before has lower rows, so a stable sort of the two side by side keeps ties in row order.
            scores = torch.cat([scores_BK[part], found_BK], dim=1)
            rows = torch.cat([rows_BK[part], columns_BK + start], dim=1)
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            scores_BK[part], rows_BK[part] = scores[:, :k], rows.gather(1, order[:, :k])
    # An excluded candidate has score -inf, as has padding.
    return scores_BK, rows_BK.masked_fill_(scores_BK == -torch.inf, -1)


def stable_topk(scores_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` along dimension 1 with a promise on ties: equal scores by the lower column, 1 <= k <= N."""
    if k >= scores_BN.shape[1]:
        values_BN, columns_BN = scores_BN.sort(dim=1, descending=True, stable=True)
        return values_BN, columns_BN
    values, columns = torch.topk(scores_BN, k + 1, dim=1)
    columns_BK = columns[:, :k].clone()
    # torch.topk chose freely among equal scores; that matters only where the choice was cut off between two of them.
    cut = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
    if len(cut):
        columns_BK[cut] = _lowest_columns(scores_BN[cut], values[cut, k - 1, None], k)
    columns_BK = columns_BK.sort(dim=1).values
    values_BK, order = scores_BN.gather(1, columns_BK).sort(dim=1, descending=True, stable=True)
    return values_BK, columns_BK.gather(1, order)


def _lowest_columns(scores_BN: Tensor, least_B1: Tensor, k: int) -> Tensor:
    """Columns, ascending, of all scores above the k-th best and of as many equal to it as make k, lowest first."""
    above = scores_BN > least_B1
    equal = scores_BN == least_B1
    wanted = k - above.sum(dim=1, keepdim=True, dtype=torch.int32)
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= wanted))
    return chosen.nonzero()[:, 1].view(-1, k)


def _scores(anchor_BD: Tensor, candidate_CD: Tensor) -> Tensor:
    num_anchors, num_candidates = len(anchor_BD), len(candidate_CD)
    anchor_BD = pad(anchor_BD, (0, 0, 0, max(0, _MIN_SIDE - num_anchors)))
    candidate_CD = pad(candidate_CD, (0, 0, 0, max(0, _MIN_SIDE - num_candidates)))
    return (anchor_BD @ candidate_CD.T)[:num_anchors, :num_candidates]


def _leave_out(scores_BC: Tensor, columns_B: Tensor) -> None:
    inside = ((columns_B >= 0) & (columns_B < scores_BC.shape[1])).nonzero().squeeze(1)
    scores_BC[inside, columns_B[inside]] = -torch.inf


def _check(anchor_BD: Tensor, candidate_ND: Tensor, k: int, exclude_B: Tensor | None, block: int) -> None:
    if k < 1 or block < 1:
        raise ValueError(f"k and block must be at least 1, not {k} and {block}")
    if anchor_BD.ndim != 2 or candidate_ND.ndim != 2 or anchor_BD.shape[1] != candidate_ND.shape[1]:
        raise ValueError(f"anchors {list(anchor_BD.shape)} and candidates {list(candidate_ND.shape)} do not fit")
    if anchor_BD.dtype != torch.float32 or candidate_ND.dtype != torch.float32:
        raise ValueError(f"vectors must be float32, not {anchor_BD.dtype} and {candidate_ND.dtype}")
    if exclude_B is not None and exclude_B.shape != anchor_BD.shape[:1]:
        raise ValueError(f"exclude_B {list(exclude_B.shape)} must name one row per anchor ({len(anchor_BD)})")
    for name, vectors in (("anchors", anchor_BD), ("candidates", candidate_ND)):
        if not bool(torch.isfinite(vectors).all()):
            row = int((~torch.isfinite(vectors)).any(dim=1).nonzero()[0])
            raise ValueError(f"{name} row {row} holds NaN or infinity, which no ranking can order")
