"""Exact top-k by inner product: never the whole B x N score matrix, the same result whatever the way there.

A pair's score is its inner product in float64, rounded to float32; equal scores rank by the lower row. Neither depends
on blocks, precision, device or number of ranks, so the result does not. `scan` finds the few candidates that may be
among the best in a cheap precision; they alone are scored exactly. Where a scan would not pay, or cannot prove that it
lost nothing, everything is scored in float64.

Stands between the vectors of the towers and every ranking; `metrics` and `evaluator` see only the rows found here.
Legend: B anchors (Q of a chunk), N candidates of the catalogue (M allowed, C of a block), D width, K cut-off,
L candidates kept of an anchor.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchrec_mt.models.losses.walk import Precision, product_dtype
from torchrec_mt.retrieval.scan import Scan, block_size, near_best, sample_size

_WHOLE_AT_ONCE = 256
_SCANNED_FROM = 8192
"""Smaller catalogues are scored whole."""
_SCORES_AT_ONCE = 1 << 23  # 32 MiB: few anchors, whose scores need no blocks
_NUMBERS_AT_ONCE = 1 << 17  # 1 MiB of float64: caches hold it
_LAST_ROW = 0xFFFFFFFF
_NO_KEY = -(1 << 63)


@dataclass(frozen=True)
class Excluded:
    """Candidates that are left out of an anchor's ranking: itself, items already seen. Rows may repeat.

    owner_L: positions of anchors, ascending. row_L: rows of the catalogue, -1 for none.
    """

    owner_L: Tensor
    row_L: Tensor

    @classmethod
    def nothing(cls, device: torch.device) -> "Excluded":
        """No anchor leaves anything out."""
        return cls(*torch.zeros(2, 0, dtype=torch.int64, device=device))

    @classmethod
    def one_each(cls, row_B: Tensor) -> "Excluded":
        """One row per anchor, -1 for none."""
        return cls(torch.arange(len(row_B), device=row_B.device), row_B)

    def to(self, device: torch.device) -> "Excluded":
        """The same on a device."""
        return Excluded(self.owner_L.to(device), self.row_L.to(device))

    def of(self, anchors: slice) -> "Excluded":
        """Those of the anchors of a slice, numbered from 0."""
        edges = torch.tensor([anchors.start, anchors.stop], device=self.owner_L.device)
        first, last = torch.searchsorted(self.owner_L, edges).tolist()
        return Excluded(self.owner_L[first:last] - anchors.start, self.row_L[first:last])

    def only(self, anchor_Q: Tensor) -> "Excluded":
        """Those of the given anchors (ascending), numbered from 0."""
        at_L = torch.searchsorted(anchor_Q, self.owner_L).clamp(max=max(len(anchor_Q) - 1, 0))
        there_L = anchor_Q[at_L] == self.owner_L
        return Excluded(at_L[there_L], self.row_L[there_L])

    def most(self) -> int:
        """The largest number of rows that one anchor leaves out."""
        return int(torch.bincount(self.owner_L).max()) if len(self.owner_L) else 0

    def holds(self, row_QL: Tensor) -> Tensor:
        """Whether an anchor (a row of row_QL) leaves a candidate out: bool_QL."""
        first_L = torch.ones_like(self.owner_L, dtype=torch.bool)
        first_L[1:] = self.owner_L[1:] != self.owner_L[:-1]
        if bool(first_L.all()):
            row_Q = row_QL.new_full((len(row_QL),), -2)
            row_Q[self.owner_L] = self.row_L
            return row_QL == row_Q[:, None]
        width = int(max(self.row_L.max(), row_QL.max())) + 2
        key_L = (self.owner_L * width + self.row_L).sort().values
        wanted_QL = torch.arange(len(row_QL), device=row_QL.device)[:, None] * width + row_QL
        return key_L[torch.searchsorted(key_L, wanted_QL).clamp(max=len(key_L) - 1)] == wanted_QL


class Catalogue:
    """Candidates to rank, checked once and asked many times.

    Args:
        vector_ND: finite float32 vectors; may be a memory-mapped file, which is read block by block.
        device: where products are computed; none is that of the vectors.
        precision: of the scan; changes its speed, not its result. block: candidates looked at together (0: by device).
        copy: keep the vectors in the scan's precision too: half as much memory again, half the time for few anchors.

    Raises:
        ValueError: vectors that are no matrix of float32, or with NaN or infinity, naming the row.
    """

    def __init__(
        self,
        vector_ND: Tensor,
        *,
        device: torch.device | None = None,
        precision: Precision = "auto",
        block: int = 0,
        copy: bool = False,
    ) -> None:
        if block < 0:
            raise ValueError(f"block must be at least 1, or 0 for the default, not {block}")
        self._device = device or vector_ND.device
        self._dtype = product_dtype(precision, self._device)
        self._vector_ND, self._block = vector_ND, block or block_size(self._dtype, self._device)
        _check_matrix("candidates", vector_ND)
        self._longest = 0.0
        for start in range(0, len(vector_ND), self._block):
            block_CD = vector_ND[start : start + self._block]
            _check_finite("candidates", block_CD, start)
            self._longest = max(self._longest, float(torch.linalg.vector_norm(block_CD.double(), dim=1).max()))
        self._scanned_ND = vector_ND.to(self._device, self._dtype) if copy else vector_ND

    def topk(
        self, anchor_BD: Tensor, k: int, *, excluded: Excluded | None = None, allowed_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k candidates of largest inner product per anchor, best first; equal scores by the lower row.

        Args:
            anchor_BD: finite float32 vectors. excluded: rows that single anchors leave out.
            allowed_N: the candidates that may be ranked at all (in stock, of a category, of a country); none: all.

        Returns:
            scores_BK (float32) and rows_BK (int64); where fewer than k candidates are left, -inf and -1.

        Raises:
            ValueError: k < 1, or anchors that do not fit the candidates or hold NaN or infinity.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        _check_matrix("anchors", anchor_BD)
        if anchor_BD.shape[1] != self._vector_ND.shape[1]:
            shapes = f"anchors {list(anchor_BD.shape)} and candidates {list(self._vector_ND.shape)}"
            raise ValueError(f"{shapes} do not fit")
        _check_finite("anchors", anchor_BD, 0)
        excluded = excluded or Excluded.nothing(anchor_BD.device)
        return scores_and_rows(self.keys(anchor_BD, k, excluded, allowed_N))

    def keys(self, anchor_BD: Tensor, k: int, excluded: Excluded, allowed_N: Tensor | None) -> Tensor:
        """What `topk` gives, as whole numbers that order by score and then by row: key_BK (see `scores_and_rows`)."""
        anchor_BD, excluded = anchor_BD.to(self._device), excluded.to(self._device)
        row_M = None if allowed_N is None else allowed_N.nonzero().squeeze(1)
        key_BK = torch.full((len(anchor_BD), k), _NO_KEY, dtype=torch.int64, device=self._device)
        left_B = self._scan(anchor_BD, excluded, row_M, key_BK)
        for low in range(0, len(left_B), _WHOLE_AT_ONCE):
            here_Q = left_B[low : low + _WHOLE_AT_ONCE]
            key_BK[here_Q] = self._score_all(anchor_BD[here_Q], excluded.only(here_Q), row_M, k)
        return key_BK

    def _scan(self, anchor_BD: Tensor, excluded: Excluded, row_M: Tensor | None, key_BK: Tensor) -> Tensor:
        """Fills in the keys of anchors by a scan; returns the positions of those that it could not do."""
        k = key_BK.shape[1]
        spare = excluded.most()
        candidates = len(self._vector_ND) if row_M is None else len(row_M)
        everyone_B = torch.arange(len(anchor_BD), device=self._device)
        if candidates < max(_SCANNED_FROM, 32 * (k + spare)) or not len(anchor_BD):
            return everyone_B
        if candidates * len(anchor_BD) <= _SCORES_AT_ONCE:
            vector_MD = self._scanned_ND.to(self._device) if row_M is None else self._vectors(row_M)
            row_QL = _rows(near_best(anchor_BD, vector_MD, longest=self._longest, k=k + spare), row_M)
            row_QL.masked_fill_(excluded.holds(row_QL), -1)
            key_BK.copy_(best_keys(self._keys_of(anchor_BD, row_QL), k))
            return everyone_B[:0]
        generator = torch.Generator().manual_seed(0)
        sample_S = torch.randint(candidates, (sample_size(candidates),), generator=generator)
        sample_SD = self._vectors(sample_S if row_M is None else row_M[sample_S.to(row_M.device)])
        scan = Scan(
            anchor_BD, sample_SD, candidates=candidates, longest=self._longest, k=k, spare=spare, dtype=self._dtype
        )
        for start in range(0, candidates, self._block):
            scan.see(start, self._block_of(self._scanned_ND, start, row_M))
        left = []
        for chunk, kept in scan.kept(lambda chunk, at_QL: excluded.of(chunk).holds(_rows(at_QL, row_M))):
            found_QK = best_keys(self._keys_of(anchor_BD[chunk], _rows(kept.position_QL, row_M)), k)
            key_BK[chunk][:, : found_QK.shape[1]] = found_QK
            left.append(everyone_B[chunk][~kept.proven_Q])
        return torch.cat(left)

    def _score_all(self, anchor_QD: Tensor, excluded: Excluded, row_M: Tensor | None, k: int) -> Tensor:
        """Keys of the k best by float64 products with every candidate: key_QK."""
        best_QK = torch.full((len(anchor_QD), k), _NO_KEY, dtype=torch.int64, device=self._device)
        candidates = len(self._vector_ND) if row_M is None else len(row_M)
        if not candidates:
            return best_QK
        for start in range(0, candidates, self._block):
            block_CD = self._block_of(self._vector_ND, start, row_M)
            row_C = _rows(torch.arange(start, start + len(block_CD), device=self._device), row_M)
            score_QC = (anchor_QD.double() @ block_CD.double().T).float()
            key_QC = _keys(score_QC, row_C.expand(len(anchor_QD), -1))
            key_QC.masked_fill_(excluded.holds(row_C.expand(len(anchor_QD), -1)), _NO_KEY)
            best_QK = best_keys(torch.cat([best_QK, best_keys(key_QC, k)], dim=1), k)
        # Scored as any other, lest a product of another shape differ in the last bit.
        return best_keys(self._keys_of(anchor_QD, scores_and_rows(best_QK)[1]), k)

    def _keys_of(self, anchor_QD: Tensor, row_QL: Tensor) -> Tensor:
        """Keys of chosen rows (-1: none): key_QL."""
        parts, at_once = [], max(1, _NUMBERS_AT_ONCE // max(1, row_QL.shape[1] * anchor_QD.shape[1]))
        for low in range(0, len(row_QL), at_once):
            row_RL = row_QL[low : low + at_once]
            vector_RLD = self._vectors(row_RL.clamp(min=0).flatten()).unflatten(0, row_RL.shape)
            score_RL = (vector_RLD.double() * anchor_QD[low : low + at_once, None].double()).sum(dim=2).float()
            parts.append(_keys(score_RL, row_RL))
        return torch.cat(parts) if parts else torch.empty_like(row_QL)

    def _vectors(self, row_L: Tensor) -> Tensor:
        return self._vector_ND.index_select(0, row_L.to(self._vector_ND.device)).to(self._device)

    def _block_of(self, vector_ND: Tensor, start: int, row_M: Tensor | None) -> Tensor:
        here = slice(start, start + self._block)
        chosen_CD = vector_ND[here] if row_M is None else vector_ND.index_select(0, row_M[here].to(vector_ND.device))
        return chosen_CD.to(self._device)


def _rows(position: Tensor, row_M: Tensor | None) -> Tensor:
    """Catalogue rows of positions among the allowed candidates; -1 stays."""
    if row_M is None:
        return position
    row_M = row_M.to(position.device)
    return torch.where(position >= 0, row_M[position.clamp(min=0)], -1)


def _keys(score_QL: Tensor, row_QL: Tensor) -> Tensor:
    """Whole numbers in the order of the scores, and among equal scores of falling rows; the least for row -1."""
    bits_QL = (score_QL + 0.0).view(torch.int32)  # + 0.0: minus zero is zero
    ordered_QL = bits_QL ^ ((bits_QL >> 31) & 0x7FFFFFFF)
    key_QL = (ordered_QL.long() << 32) | (_LAST_ROW - row_QL)
    return key_QL.masked_fill_(row_QL < 0, _NO_KEY)


def best_keys(key_QL: Tensor, k: int) -> Tensor:
    """The k largest keys of each row (all, where there are fewer), largest first."""
    return key_QL.topk(min(k, key_QL.shape[1]), dim=1).values


def shifted_keys(key_BK: Tensor, rows: int) -> Tensor:
    """Keys of the same scores with rows that many higher: of a part of a catalogue, in the whole."""
    return torch.where(key_BK == _NO_KEY, _NO_KEY, key_BK - rows)


def stable_topk(score_BN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` along dimension 1 of scores (taken as float32), equal ones by the lower column; best first."""
    column_BN = torch.arange(score_BN.shape[1], device=score_BN.device).expand(score_BN.shape)
    key_BK = best_keys(_keys(score_BN.float(), column_BN), k)
    return scores_and_rows(key_BK)


def scores_and_rows(key_BK: Tensor) -> tuple[Tensor, Tensor]:
    """scores_BK (float32) and rows_BK of keys; -inf and -1 where there is none."""
    ordered_BK = (key_BK >> 32).int()
    scores_BK = (ordered_BK ^ ((ordered_BK >> 31) & 0x7FFFFFFF)).view(torch.float32)
    none_BK = key_BK == _NO_KEY
    rows_BK = (_LAST_ROW - (key_BK & _LAST_ROW)).masked_fill_(none_BK, -1)
    return scores_BK.masked_fill_(none_BK, -torch.inf), rows_BK


def exact_topk(
    anchor_BD: Tensor,
    candidate_ND: Tensor,
    k: int,
    *,
    exclude_B: Tensor | None = None,
    block: int = 0,
    precision: Precision = "auto",
) -> tuple[Tensor, Tensor]:
    """`Catalogue.topk` for candidates that are asked once; `exclude_B`: one row per anchor to leave out, -1 for none.

    Raises:
        ValueError: as `Catalogue` and `Catalogue.topk`, or an exclude_B that is not one row per anchor.
    """
    excluded = None
    if exclude_B is not None:
        if exclude_B.shape != anchor_BD.shape[:1]:
            raise ValueError(f"exclude_B {list(exclude_B.shape)} must name one row per anchor ({len(anchor_BD)})")
        excluded = Excluded.one_each(exclude_B)
    catalogue = Catalogue(candidate_ND, device=anchor_BD.device, precision=precision, block=block)
    return catalogue.topk(anchor_BD, k, excluded=excluded)


def _check_matrix(name: str, vectors: Tensor) -> None:
    if vectors.ndim != 2 or vectors.dtype != torch.float32:
        raise ValueError(f"{name} must be a float32 matrix, not {vectors.dtype} of shape {list(vectors.shape)}")


def _check_finite(name: str, vectors: Tensor, first_row: int) -> None:
    # A sum is finite only if all are (or, by a rare overflow, not even then): a tenth of the time of asking each.
    if bool(torch.isfinite(vectors.double().sum())):
        return
    row = first_row + int((~torch.isfinite(vectors)).any(dim=1).nonzero()[0])
    raise ValueError(f"{name} row {row} holds NaN or infinity, which no ranking can order")
