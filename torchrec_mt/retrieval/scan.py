"""One pass over a catalogue that keeps, per anchor, every candidate that may be among its k best.

A threshold per anchor comes from a sample of the catalogue; products are computed block by block in a cheap precision,
and only scores near or above the threshold are written down. What is kept provably holds the k best: an anchor for
which that cannot be shown is named, and goes another way. Exact scores are `topk`'s business.

Legend: B anchors (Q at a time), N candidates (C at a time), D width, K cut-off, S sampled candidates, G candidates of a
group, J groups of a block, H groups (or scores) found, L kept (anchor, candidate) places.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

ANCHORS_AT_ONCE = 512
_SCORE_BYTES = {"cpu": 8 << 20, "cuda": 64 << 20}
"""Scores of a block: what a CPU's caches hold, enough to fill a GPU."""
_LARGEST_GROUP = 16
_KEPT_AT_MOST = 4
"""Times what is expected (and some): an anchor with more has ties without end, or a sample that misleads."""


@dataclass(frozen=True)
class Kept:
    """Candidates that may be among the k best of each anchor of a chunk.

    position_QL: their positions, -1 behind the last. proven_Q: whether the anchor's k best are all here.
    """

    position_QL: Tensor
    proven_Q: Tensor


def score_error(anchor_BD: Tensor, longest: float, dtype: torch.dtype) -> Tensor:
    """Bound of |score in `dtype` - true score| for every candidate no longer than `longest`: error_B.

    With unit roundoff u of the dtype, operands are off by u each and the result by u of itself; sums inside the product
    are float32. The inner product of absolute values is at most the product of lengths (Cauchy-Schwarz).
    """
    u, width = torch.finfo(dtype).eps / 2, anchor_BD.shape[1]
    operands = 0.0 if dtype == torch.float32 else 2 * u + u * u
    sums = 2 * width * torch.finfo(torch.float32).eps / 2
    length_B = torch.linalg.vector_norm(anchor_BD.double(), dim=1)
    subnormal_B = width * 2.0**-126 * (1 + longest + length_B)  # what a product may take for zero
    return ((1 + operands + sums) * (1 + u) - 1) * 1.01 * longest * length_B + 4 * subnormal_B


def block_size(dtype: torch.dtype, device: torch.device) -> int:
    """Candidates to look at together."""
    return _SCORE_BYTES[device.type] // (ANCHORS_AT_ONCE * dtype.itemsize)


def sample_size(candidates: int) -> int:
    """Candidates whose scores set the thresholds: a thirty-second of the catalogue, within bounds."""
    return max(8192, min(candidates // 32, 65536))


def sampled_rank(candidates: int, sample: int, k: int) -> int:
    """The rank in the sample that lies below the k-th best of the catalogue, but for one anchor in thousands.

    Of the k best about k * sample / candidates are in the sample, by chance that many and a few standard deviations.
    """
    expected = k * sample / candidates
    return math.ceil(expected + 4 * math.sqrt(expected) + 2)


class _Scratch:
    """Memory for results of one kind, used again and again: a fresh page costs more than a product that fills it."""

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_empty(0)

    def __call__(self, rows: int, columns: int) -> Tensor:
        if len(self._memory) < rows * columns:
            self._memory = self._memory.new_empty(rows * columns)
        return self._memory[: rows * columns].view(rows, columns)


def near_best(anchor_QD: Tensor, vector_ND: Tensor, *, longest: float, k: int) -> Tensor:
    """For few anchors: positions of all candidates that may be among the k best (k <= N), position_QL, -1 behind.

    All scores at once, in the precision of vector_ND. The k-th best of maxima of groups is at most the k-th best score.
    """
    anchors, candidates = len(anchor_QD), len(vector_ND)
    group = _LARGEST_GROUP
    while group > 1 and candidates < 4 * group * k:
        group //= 2
    filled = -(-candidates // group) * group
    score_QN = vector_ND.new_empty(anchors, filled)
    torch.mm(anchor_QD.to(vector_ND.dtype), vector_ND.T, out=score_QN[:, :candidates])
    score_QN[:, candidates:] = -torch.inf
    best_QJ = _maxima(score_QN, group, _Scratch(score_QN))
    margin_Q = 2 * score_error(anchor_QD, longest, vector_ND.dtype).float()
    floor_Q = best_QJ.topk(k, dim=1).values[:, -1].float() - margin_Q
    owner_H, position_H, score_H = _at_least(score_QN, best_QJ, floor_Q)
    none_Q = torch.zeros(anchors, dtype=torch.int64, device=owner_H.device)
    place_H, count_Q = _places(owner_H, none_Q)
    return _side_by_side([(owner_H, place_H, position_H, score_H)], count_Q, count_Q >= 0)[0]


class Scan:
    """The pass for one set of anchors.

    Args:
        anchor_BD: finite float32 vectors. sample_SD: candidates drawn at random. candidates: how many there are in all.
        longest: length of the longest candidate. k: how many best are wanted. spare: how many may yet be excluded.
        dtype: of the products.
    """

    def __init__(
        self,
        anchor_BD: Tensor,
        sample_SD: Tensor,
        *,
        candidates: int,
        longest: float,
        k: int,
        spare: int,
        dtype: torch.dtype,
    ) -> None:
        self._k, self._dtype = k, dtype
        self._anchor_BD = anchor_BD.to(dtype)
        rank = sampled_rank(candidates, len(sample_SD), k + spare)
        self._group = _group_size(rank / len(sample_SD))
        self._least_B = _ranked_scores(self._anchor_BD, sample_SD.to(dtype), rank)
        self._margin_B = 2 * score_error(anchor_BD, longest, dtype).to(torch.float32)
        # Rounded down to the dtype, or a score just at the bound would be lost.
        floor_B = (self._least_B - self._margin_B).to(dtype)
        self._floor_B = torch.where(floor_B.float() > self._least_B - self._margin_B, _below(floor_B), floor_B)
        self._most = _KEPT_AT_MOST * rank * candidates // len(sample_SD) + 2048
        self._count_B = torch.zeros(len(anchor_BD), dtype=torch.int64, device=anchor_BD.device)
        self._parts: list[list[tuple[Tensor, ...]]] = [[] for _ in self._chunks()]
        self._score, self._best = _Scratch(self._anchor_BD), _Scratch(self._anchor_BD)

    def _chunks(self) -> list[slice]:
        return [slice(low, low + ANCHORS_AT_ONCE) for low in range(0, len(self._anchor_BD), ANCHORS_AT_ONCE)]

    def see(self, start: int, block_CD: Tensor) -> None:
        """Looks at the candidates at positions start, start + 1, ..."""
        block_CD, fill = block_CD.to(self._dtype), (-len(block_CD)) % _LARGEST_GROUP
        block_CD = pad(block_CD, (0, 0, 0, fill)) if fill else block_CD
        for chunk, parts in zip(self._chunks(), self._parts, strict=True):
            anchor_QD = self._anchor_BD[chunk]
            score_QC = torch.mm(anchor_QD, block_CD.T, out=self._score(len(anchor_QD), len(block_CD)))
            if fill:
                score_QC[:, -fill:] = -torch.inf
            best_QJ = _maxima(score_QC, self._group, self._best)
            owner_H, column_H, score_H = _at_least(score_QC, best_QJ, self._floor_B[chunk])
            place_H, count_Q = _places(owner_H, self._count_B[chunk])
            self._count_B[chunk] = count_Q
            over_Q = count_Q > self._most
            if bool(over_Q.any()):  # nothing of these anchors is kept, now or later
                self._floor_B[chunk].masked_fill_(over_Q, torch.inf)
                fits_H = ~over_Q[owner_H]
                owner_H, place_H, column_H, score_H = (x_H[fits_H] for x_H in (owner_H, place_H, column_H, score_H))
            parts.append((owner_H, place_H, column_H + start, score_H))

    def kept(self, excluded: Callable[[slice, Tensor], Tensor]) -> Iterator[tuple[slice, Kept]]:
        """What was kept, chunk by chunk of the anchors.

        Args:
            excluded: told a slice of the anchors and position_QL, says which of these do not count.
        """
        for chunk, parts in zip(self._chunks(), self._parts, strict=True):
            count_Q = self._count_B[chunk]
            fits_Q = count_Q <= self._most
            position_QL, score_QL = _side_by_side(parts, count_Q, fits_Q)
            parts.clear()
            score_QL.masked_fill_(excluded(chunk, position_QL), -torch.inf)
            proven_Q = fits_Q & ((score_QL >= self._least_B[chunk, None]).sum(dim=1) >= self._k)
            if score_QL.shape[1] >= self._k:
                worst_Q = score_QL.topk(self._k, dim=1, sorted=False).values.amin(dim=1)
                keep_QL = (score_QL >= (worst_Q - self._margin_B[chunk])[:, None]) & proven_Q[:, None]
                position_QL = _left(position_QL, keep_QL)
            yield chunk, Kept(position_QL, proven_Q)


def _group_size(share: float) -> int:
    """Candidates that are looked at as one: few enough that most groups hold nothing to keep."""
    size = _LARGEST_GROUP
    while size > 1 and size * share > 0.1:
        size //= 2
    return size


def _ranked_scores(anchor_BD: Tensor, sample_SD: Tensor, rank: int) -> Tensor:
    """About the `rank`-th best score of each anchor in the sample, never more: score_B (float32)."""
    if rank > len(sample_SD):
        return torch.full((len(anchor_BD),), -torch.inf, device=anchor_BD.device)
    # Of maxima of groups: the rank-th best of these is at most the rank-th best of all, and there are fewer.
    group = 1
    while group < 8 and len(sample_SD) // (2 * group) >= 8 * rank:
        group *= 2
    whole = len(sample_SD) // group * group
    parts = []
    for low in range(0, len(anchor_BD), ANCHORS_AT_ONCE):
        score_QS = anchor_BD[low : low + ANCHORS_AT_ONCE] @ sample_SD[:whole].T
        best = score_QS.view(len(score_QS), group, -1).amax(dim=1)
        parts.append(best.topk(rank, dim=1).values[:, -1].float())
    return torch.cat(parts)


def _maxima(score_QC: Tensor, group: int, scratch: _Scratch) -> Tensor:
    """The best score of each group, best_QJ; candidates j, j + J, j + 2 J, ... are group j."""
    if group == 1:
        return score_QC
    grouped_QGJ = score_QC.view(len(score_QC), group, -1)
    return torch.amax(grouped_QGJ, dim=1, out=scratch(len(score_QC), grouped_QGJ.shape[2]))


def _at_least(score_QC: Tensor, best_QJ: Tensor, floor_Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of at least their row's floor: row_H (ascending), column_H, score_H (float32).

    Args:
        best_QJ: see `_maxima`.
    """
    row_H, at_H = (best_QJ >= floor_Q[:, None]).nonzero().unbind(dim=1)
    if best_QJ.shape == score_QC.shape:
        return row_H, at_H, score_QC[row_H, at_H].float()
    groups = best_QJ.shape[1]
    score_HG = score_QC.view(len(score_QC), -1, groups)[row_H, :, at_H]
    found_H, member_H = (score_HG >= floor_Q[row_H, None]).nonzero().unbind(dim=1)
    return row_H[found_H], member_H * groups + at_H[found_H], score_HG[found_H, member_H].float()


def _places(owner_H: Tensor, before_Q: Tensor) -> tuple[Tensor, Tensor]:
    """Where each goes in its anchor's row, behind the `before_Q` that are there: place_H, and the new counts.

    Args:
        owner_H: ascending.
    """
    new_Q = torch.bincount(owner_H, minlength=len(before_Q))
    first_Q = before_Q - new_Q.cumsum(0) + new_Q
    return torch.arange(len(owner_H), device=owner_H.device) + first_Q[owner_H], before_Q + new_Q


def _side_by_side(parts: list[tuple[Tensor, ...]], count_Q: Tensor, fits_Q: Tensor) -> tuple[Tensor, Tensor]:
    """Places of all blocks in one row per anchor: position_QL and score_QL, -1 and -inf behind the last."""
    owner_H, place_H, position_H, score_H = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if not bool(fits_Q.all()):
        there_H = fits_Q[owner_H]
        owner_H, place_H, position_H, score_H = (x_H[there_H] for x_H in (owner_H, place_H, position_H, score_H))
    shape = (len(count_Q), int(torch.where(fits_Q, count_Q, 0).max()))
    position_QL, score_QL = owner_H.new_full(shape, -1), score_H.new_full(shape, -torch.inf)
    at_H = owner_H * shape[1] + place_H
    position_QL.view(-1).index_copy_(0, at_H, position_H)
    score_QL.view(-1).index_copy_(0, at_H, score_H)
    return position_QL, score_QL


def _left(position_QL: Tensor, keep_QL: Tensor) -> Tensor:
    """The kept places of each row, moved to its left; -1 behind them."""
    place_QL = keep_QL.cumsum(dim=1)
    left_QL = position_QL.new_full((len(position_QL), int(place_QL[:, -1].max()) + 1), -1)
    # What is not kept goes to a last column that is cut off again.
    left_QL.scatter_(1, torch.where(keep_QL, place_QL - 1, left_QL.shape[1] - 1), position_QL)
    return left_QL[:, :-1]


def _below(x_B: Tensor) -> Tensor:
    """The next number of the dtype towards minus infinity."""
    return torch.nextafter(x_B, torch.full_like(x_B, -torch.inf))
