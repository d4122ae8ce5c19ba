"""Exact top-k by inner product: never the whole B x N score matrix, the same result whatever the way there.

A pair's score is its inner product in float64, rounded to float32; equal scores rank by the lower row. Neither depends
on blocks, precision or number of ranks, so the result does not. `scan` finds the few candidates that may be among the
best in a cheap precision; they alone are scored exactly. Where a scan would not pay, or cannot prove that it lost
nothing, everything is scored by float64 products. Their order of sums may tip a score that lies within 1e-15 or so of
the border between two float32 numbers: such pairs, one in a million, are scored again as all others are.

Stands between the vectors of the towers and every ranking; `metrics` and `evaluator` see only the rows found here.
Legend: B anchors (Q of a chunk), N candidates of the catalogue (M allowed, C of a block), D width, K cut-off,
L candidates kept of an anchor.
"""

import torch
from torch import Tensor

from torchrec_mt.models.losses.walk import Precision, product_dtype
from torchrec_mt.retrieval.excluded import Excluded
from torchrec_mt.retrieval.keys import NO_KEY, best_keys, keys_of, scores_and_rows
from torchrec_mt.retrieval.scan import Scan, block_size, near_best, sample_size

_ANCHORS_AT_ONCE, _WHOLE_AT_ONCE = 4096, 256
_ORDER_ERROR = 4 * 2.0**-53
"""Bound of the difference of two float64 sums of the same products in another order, per number and product of lengths
(twice that, for the sums' own rounding)."""
_LARGEST_SCORE = 1e37
"""Beyond it float32 sums, and bfloat16 numbers, may overflow."""
_SCANNED_FROM = 8192
"""Smaller catalogues are scored whole."""
_LATE = 256
"""Where more than one in so many candidates is wanted, a rough scan keeps so many that the fine one is quicker."""
_SCORES_AT_ONCE = 1 << 23  # 32 MiB: few anchors, whose scores need no blocks
_NUMBERS_AT_ONCE = 1 << 17  # 1 MiB of float64: caches hold it


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
        self._dtype, self._may_choose = product_dtype(precision, self._device), precision == "auto"
        self._vector_ND, self._block_asked = vector_ND, block
        _check_matrix("candidates", vector_ND)
        self._longest, block = 0.0, self._block(torch.float32)
        for start in range(0, len(vector_ND), block):
            block_CD = vector_ND[start : start + block]
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
            ValueError: k < 1, anchors that do not fit the candidates or hold NaN or infinity, an allowed_N that is no
                bool per candidate, or exclusions that are not in the order of existing anchors.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        _check_matrix("anchors", anchor_BD)
        if anchor_BD.shape[1] != self._vector_ND.shape[1]:
            shapes = f"anchors {list(anchor_BD.shape)} and candidates {list(self._vector_ND.shape)}"
            raise ValueError(f"{shapes} do not fit")
        _check_finite("anchors", anchor_BD, 0)
        excluded = excluded or Excluded.nothing(anchor_BD.device)
        excluded.check(len(anchor_BD))
        if allowed_N is not None and (allowed_N.dtype != torch.bool or len(allowed_N) != len(self._vector_ND)):
            raise ValueError(f"allowed_N must hold a bool for each of the {len(self._vector_ND)} candidates")
        return scores_and_rows(self.keys(anchor_BD, k, excluded, allowed_N))

    @torch.no_grad()
    def keys(self, anchor_BD: Tensor, k: int, excluded: Excluded, allowed_N: Tensor | None) -> Tensor:
        """What `topk` gives, as whole numbers that order by score and then by row: key_BK (see `scores_and_rows`)."""
        anchor_BD, excluded = anchor_BD.to(self._device), excluded.to(self._device)
        row_M = None if allowed_N is None else allowed_N.nonzero().squeeze(1)
        key_BK = torch.full((len(anchor_BD), k), NO_KEY, dtype=torch.int64, device=self._device)
        for low in range(0, len(anchor_BD), _ANCHORS_AT_ONCE):
            here = slice(low, low + _ANCHORS_AT_ONCE)
            self._fill(key_BK[here], anchor_BD[here], excluded.of(here), row_M)
        return key_BK

    def _fill(self, key_BK: Tensor, anchor_BD: Tensor, excluded: Excluded, row_M: Tensor | None) -> None:
        """The keys of some anchors: by a scan where it pays and proves its result, otherwise by all scores."""
        k, candidates = key_BK.shape[1], len(self._vector_ND) if row_M is None else len(row_M)
        left_out_B = excluded.counts(len(anchor_BD), len(self._vector_ND))
        length_B = torch.linalg.vector_norm(anchor_BD, dim=1)
        in_range = float(length_B.max()) * self._longest < _LARGEST_SCORE and self._longest < _LARGEST_SCORE
        scanned_B = candidates >= (32 * (k + left_out_B)).clamp(min=_SCANNED_FROM)
        if in_range and bool(scanned_B.all()):
            found_BK, proven_B = self._scan(anchor_BD, excluded, row_M, k, int(left_out_B.max()))
            key_BK[:, : found_BK.shape[1]] = found_BK
            whole_Q = (~proven_B).nonzero().squeeze(1)
        elif in_range and bool(scanned_B.any()):
            # Anchors that leave out too much go their own way, lest all others be looked at as deep.
            for part_Q in (scanned_B.nonzero().squeeze(1), (~scanned_B).nonzero().squeeze(1)):
                part_QK = key_BK[part_Q]
                self._fill(part_QK, anchor_BD[part_Q], excluded.only(part_Q), row_M)
                key_BK[part_Q] = part_QK
            return
        else:
            whole_Q = torch.arange(len(anchor_BD), device=self._device)
        for low in range(0, len(whole_Q), _WHOLE_AT_ONCE):
            here_Q = whole_Q[low : low + _WHOLE_AT_ONCE]
            key_BK[here_Q] = self._score_all(anchor_BD[here_Q], excluded.only(here_Q), row_M, k)

    def _scan(
        self, anchor_QD: Tensor, excluded: Excluded, row_M: Tensor | None, k: int, spare: int
    ) -> tuple[Tensor, Tensor]:
        """Keys by a scan, key_QK, and which of them are proven; no anchor leaves out more than `spare`."""
        candidates = len(self._vector_ND) if row_M is None else len(row_M)
        here = row_M is None and self._scanned_ND.device == self._device
        if here and candidates * len(anchor_QD) <= _SCORES_AT_ONCE:
            row_QL = near_best(anchor_QD, self._scanned_ND, longest=self._longest, k=k + spare)
            row_QL.masked_fill_(excluded.holds(row_QL), -1)
            everyone_Q = torch.ones(len(anchor_QD), dtype=torch.bool, device=self._device)
            return best_keys(self._keys_of(anchor_QD, row_QL), k), everyone_Q
        generator = torch.Generator().manual_seed(0)
        sample_S = torch.randint(candidates, (sample_size(candidates),), generator=generator)
        sample_SD = self._vectors(sample_S if row_M is None else row_M[sample_S.to(row_M.device)])
        late = self._may_choose and _LATE * (k + spare) > candidates
        dtype, scanned_ND = (torch.float32, self._vector_ND) if late else (self._dtype, self._scanned_ND)
        scan = Scan(anchor_QD, sample_SD, candidates=candidates, longest=self._longest, k=k, spare=spare, dtype=dtype)
        block = self._block(dtype)
        for start in range(0, candidates, block):
            scan.see(start, self._block_of(scanned_ND, slice(start, start + block), row_M))
        key_QK = torch.full((len(anchor_QD), k), NO_KEY, dtype=torch.int64, device=self._device)
        proven = []
        for chunk, kept in scan.kept(lambda chunk, at_QL: excluded.of(chunk).holds(_rows(at_QL, row_M))):
            found_QK = best_keys(self._keys_of(anchor_QD[chunk], _rows(kept.position_QL, row_M)), k)
            key_QK[chunk, : found_QK.shape[1]] = found_QK
            proven.append(kept.proven_Q)
        return key_QK, torch.cat(proven)

    def _score_all(self, anchor_QD: Tensor, excluded: Excluded, row_M: Tensor | None, k: int) -> Tensor:
        """Keys of the k best by float64 products with every candidate: key_QK."""
        candidates = len(self._vector_ND) if row_M is None else len(row_M)
        best_QK = torch.full((len(anchor_QD), k), NO_KEY, dtype=torch.int64, device=self._device)
        waiting: list[Tensor] = []
        block = self._block(torch.float32)
        for start in range(0, candidates, block):
            block_CD = self._block_of(self._vector_ND, slice(start, start + block), row_M)
            row_C = _rows(torch.arange(start, start + len(block_CD), device=self._device), row_M)
            key_QC = self._keys_of_all(anchor_QD, block_CD, row_C)
            key_QC.masked_fill_(excluded.holds(row_C.expand(len(anchor_QD), -1)), NO_KEY)
            waiting.append(key_QC)
            # Not block by block: where k is large, the best so far are many to look at again.
            if start + len(block_CD) == candidates or sum(one.shape[1] for one in waiting) >= 2 * k:
                waiting = [best_keys(torch.cat(waiting, dim=1), k)]
        for found_QK in waiting:
            best_QK[:, : found_QK.shape[1]] = found_QK
        return best_QK

    def _keys_of_all(self, anchor_QD: Tensor, block_CD: Tensor, row_C: Tensor) -> Tensor:
        """Keys of every anchor with every candidate of a block: key_QC, the same bits as those of `_keys_of`."""
        anchor_QD64, block_CD64 = anchor_QD.double(), block_CD.double()
        score_QC = anchor_QD64 @ block_CD64.T
        margin_Q = _ORDER_ERROR * block_CD.shape[1] * torch.linalg.vector_norm(anchor_QD64, dim=1)
        margin_QC = margin_Q[:, None] * torch.linalg.vector_norm(block_CD64, dim=1)
        key_QC = keys_of(score_QC.float(), row_C.expand(len(anchor_QD), -1))
        # Where another order of sums might be rounded otherwise, the pair is scored as everywhere else.
        unsure_QC = (score_QC - margin_QC).float() != (score_QC + margin_QC).float()
        q_P, at_P = unsure_QC.nonzero().unbind(dim=1)
        key_QC[q_P, at_P] = self._keys_of(anchor_QD[q_P], row_C[at_P, None]).squeeze(1)
        return key_QC

    def _keys_of(self, anchor_QD: Tensor, row_QL: Tensor) -> Tensor:
        """Keys of chosen rows (-1: none): key_QL."""
        (anchors, kept), width = row_QL.shape, anchor_QD.shape[1]
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, kept * width))
        # The same memory for every chunk: fresh pages cost as much as the products that fill them.
        vector_LD = self._vector_ND.new_empty(min(anchors, at_once) * kept, width)
        product_RLD = anchor_QD.new_empty(min(anchors, at_once), kept, width, dtype=torch.float64)
        score_QL = anchor_QD.new_empty(anchors, kept, dtype=torch.float64)
        for low in range(0, anchors, at_once):
            here = slice(low, min(low + at_once, anchors))
            row_L = row_QL[here].clamp(min=0).flatten().to(self._vector_ND.device)
            found_LD, found_RLD = vector_LD[: len(row_L)], product_RLD[: here.stop - low]
            torch.index_select(self._vector_ND, 0, row_L, out=found_LD)
            found_RLD.copy_(found_LD.view_as(found_RLD)).mul_(anchor_QD[here, None])
            torch.sum(found_RLD, dim=2, out=score_QL[here])
        return keys_of(score_QL.float(), row_QL)

    def _vectors(self, row_L: Tensor) -> Tensor:
        return self._vector_ND.index_select(0, row_L.to(self._vector_ND.device)).to(self._device)

    def _block(self, dtype: torch.dtype) -> int:
        return self._block_asked or block_size(dtype, self._device)

    def _block_of(self, vector_ND: Tensor, here: slice, row_M: Tensor | None) -> Tensor:
        chosen_CD = vector_ND[here] if row_M is None else vector_ND.index_select(0, row_M[here].to(vector_ND.device))
        return chosen_CD.to(self._device)


def _rows(position: Tensor, row_M: Tensor | None) -> Tensor:
    """Catalogue rows of positions among the allowed candidates; -1 stays."""
    if row_M is None:
        return position
    row_M = row_M.to(position.device)
    return torch.where(position >= 0, row_M[position.clamp(min=0)], -1)


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
    # A float64 sum of float32 numbers is finite if and only if all are: a tenth of the time of asking each.
    if bool(torch.isfinite(vectors.double().sum())):
        return
    row = first_row + int((~torch.isfinite(vectors)).any(dim=1).nonzero()[0])
    raise ValueError(f"{name} row {row} holds NaN or infinity, which no ranking can order")
