"""Sums over all B x C logits, loss and gradient in one pass over chunks of rows: the matrix never exists.

Everything expensive in a loss is one of two sums, `weighted_logsumexp` or `weighted_pairwise`; what is left over is
linear in a few scores of each anchor and is written in plain PyTorch (`terms.py`).

Legend: B anchors, C columns, K private logits of an anchor (its positive and its own hard negatives), D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from torchrec_mt.models.losses.blocked import Blocked

Precision = Literal["auto", "float32", "bfloat16"]

_LOGITS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits of a chunk: on a CPU what its caches hold (4 MiB), on a GPU enough to fill it."""
_MIN_ROWS = 8


def product_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """What matrix products are computed in. `auto`: bfloat16 where the hardware multiplies it, else float32."""
    match precision:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "auto":
            return torch.bfloat16 if _has_bfloat16(device) else torch.float32


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@dataclass(frozen=True)
class Chunk:
    """Rows [start, stop) of the logits: logits_RC (float32, a buffer to be overwritten), anchor_RD as multiplied."""

    start: int
    stop: int
    logits_RC: Tensor
    anchor_RD: Tensor


class _Walk:
    """Chunks of the logits anchor_BD @ column_CD.T + offset_C, blocked places at -inf; and the way back.

    `dtype`: of the operands of all matrix products; sums inside a product are float32.
    """

    def __init__(
        self, anchor_BD: Tensor, column_CD: Tensor, offset_C: Tensor, blocked: Blocked, dtype: torch.dtype
    ) -> None:
        self._anchor_BD, self._offset_C, self._blocked, self._dtype = anchor_BD, offset_C, blocked, dtype
        self._column_CD = column_CD.to(dtype)
        rows = max(_MIN_ROWS, _LOGITS_AT_ONCE[anchor_BD.device.type] // max(1, len(column_CD)))
        self._starts = list(range(0, len(anchor_BD), rows))
        self._buffer_RC = anchor_BD.new_empty(min(rows, len(anchor_BD)), len(column_CD))
        self._low_RC = None if dtype == torch.float32 else torch.empty_like(self._buffer_RC, dtype=dtype)

    def __iter__(self) -> Iterator[Chunk]:
        edges = torch.tensor([*self._starts, len(self._anchor_BD)], device=self._anchor_BD.device)
        # The one wait for the device: where each chunk's blocked places begin.
        bounds = torch.searchsorted(self._blocked.row_L, edges).tolist()
        stops = [*self._starts[1:], len(self._anchor_BD)]
        for number, (start, stop) in enumerate(zip(self._starts, stops, strict=False)):
            anchor_RD = self._anchor_BD[start:stop].to(self._dtype)
            logits_RC = self._buffer_RC[: stop - start]
            if self._low_RC is None:
                torch.addmm(self._offset_C, anchor_RD, self._column_CD.T, out=logits_RC)
            else:
                product_RC = torch.mm(anchor_RD, self._column_CD.T, out=self._low_RC[: stop - start])
                torch.add(product_RC, self._offset_C, out=logits_RC)
            here = slice(bounds[number], bounds[number + 1])
            place = (self._blocked.row_L[here] - start) * logits_RC.shape[1] + self._blocked.column_L[here]
            logits_RC.view(-1).index_fill_(0, place, -torch.inf)
            yield Chunk(start, stop, logits_RC, anchor_RD)

    def pull_back(
        self, chunk: Chunk, slope_RC: Tensor, factor_R: Tensor, d_anchor_BD: Tensor, d_column_CD: Tensor
    ) -> None:
        """Adds the gradient of a chunk whose logits have the gradient factor_R[:, None] * slope_RC.

        Args:
            d_anchor_BD, d_column_CD: gradients to write and to add to; the latter may be of the first columns only.
        """
        slope_RC = slope_RC if self._low_RC is None else self._low_RC[: len(slope_RC)].copy_(slope_RC)
        d_anchor_BD[chunk.start : chunk.stop] = (slope_RC @ self._column_CD).float() * factor_R[:, None]
        anchor_RD = (self._anchor_BD[chunk.start : chunk.stop] * factor_R[:, None]).to(self._dtype)
        if self._low_RC is None:
            d_column_CD.addmm_(slope_RC[:, : len(d_column_CD)].T, anchor_RD)
        else:
            d_column_CD.add_(slope_RC[:, : len(d_column_CD)].T @ anchor_RD)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor_BD: Tensor,
        column_CD: Tensor,
        private_BK: Tensor,
        offset_C: Tensor,
        weight_B: Tensor,
        blocked: Blocked,
        learning: int,
        dtype: torch.dtype,
    ) -> Tensor:
        walk = _Walk(anchor_BD, column_CD, offset_C, blocked, dtype)
        total = anchor_BD.new_zeros(())
        d_anchor_BD, d_private_BK = torch.zeros_like(anchor_BD), torch.empty_like(private_BK)
        d_column_CD = torch.zeros_like(column_CD[:learning])
        for chunk in walk:
            here = slice(chunk.start, chunk.stop)
            top_R = private_BK[here].amax(dim=1)
            if len(column_CD):
                top_R = torch.maximum(top_R, chunk.logits_RC.amax(dim=1))
            share_RC = chunk.logits_RC.sub_(top_R[:, None]).exp_()
            private_RK = (private_BK[here] - top_R[:, None]).exp_()
            sum_R = share_RC.sum(dim=1) + private_RK.sum(dim=1)
            total += weight_B[here] @ (top_R + sum_R.log())
            factor_R = weight_B[here] / sum_R
            d_private_BK[here] = private_RK * factor_R[:, None]
            walk.pull_back(chunk, share_RC, factor_R, d_anchor_BD, d_column_CD)
        ctx.save_for_backward(d_anchor_BD, d_column_CD, d_private_BK)
        ctx.idle = len(column_CD) - learning
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        d_anchor_BD, d_column_CD, d_private_BK = ctx.saved_tensors
        d_column_CD = torch.nn.functional.pad(scale * d_column_CD, (0, 0, 0, ctx.idle))
        return scale * d_anchor_BD, d_column_CD, scale * d_private_BK, None, None, None, None, None


def weighted_logsumexp(
    anchor_BD: Tensor,
    column_CD: Tensor,
    private_BK: Tensor,
    offset_C: Tensor,
    weight_B: Tensor,
    blocked: Blocked,
    *,
    learning: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """sum_b weight_b * log(sum_k exp(private_bk) + sum_c exp(anchor_b . column_c + offset_c)), blocked places left out.

    Args:
        anchor_BD: already multiplied by the inverse temperature. column_CD: what every anchor is compared with.
        private_BK: logits of each anchor's own columns, at least one of them finite per row.
        offset_C, weight_B: constants (no gradient).
        learning: the first columns, as many as want a gradient (None: all). dtype: of the matrix products.
    """
    learning = len(column_CD) if learning is None else learning
    return _LogSumExp.apply(anchor_BD, column_CD, private_BK, offset_C, weight_B, blocked, learning, dtype)


class _Pairwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        anchor_BD: Tensor,
        column_CD: Tensor,
        shift_B: Tensor,
        column_weight_C: Tensor,
        weight_B: Tensor,
        blocked: Blocked,
        shape: str,
        learning: int,
        dtype: torch.dtype,
    ) -> Tensor:
        walk = _Walk(anchor_BD, column_CD, torch.zeros_like(column_weight_C), blocked, dtype)
        total = anchor_BD.new_zeros(())
        d_anchor_BD, d_shift_B = torch.zeros_like(anchor_BD), torch.zeros_like(shift_B)
        d_column_CD = torch.zeros_like(column_CD[:learning])
        for chunk in walk:
            here = slice(chunk.start, chunk.stop)
            logits_RC = chunk.logits_RC.add_(shift_B[here, None])
            match shape:
                case "softplus":
                    value_RC, slope_RC = torch.nn.functional.softplus(logits_RC), logits_RC.sigmoid_()
                case "hinge":
                    value_RC, slope_RC = logits_RC.relu(), logits_RC.gt_(0)
                case _:
                    raise AssertionError(shape)
            total += weight_B[here] @ (value_RC @ column_weight_C)
            slope_RC.mul_(column_weight_C)
            d_shift_B[here] = slope_RC.sum(dim=1) * weight_B[here]
            walk.pull_back(chunk, slope_RC, weight_B[here], d_anchor_BD, d_column_CD)
        ctx.save_for_backward(d_anchor_BD, d_column_CD, d_shift_B)
        ctx.idle = len(column_CD) - learning
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        d_anchor_BD, d_column_CD, d_shift_B = ctx.saved_tensors
        d_column_CD = torch.nn.functional.pad(scale * d_column_CD, (0, 0, 0, ctx.idle))
        return scale * d_anchor_BD, d_column_CD, scale * d_shift_B, None, None, None, None, None, None


def weighted_pairwise(
    anchor_BD: Tensor,
    column_CD: Tensor,
    shift_B: Tensor,
    column_weight_C: Tensor,
    weight_B: Tensor,
    blocked: Blocked,
    shape: Literal["softplus", "hinge"],
    *,
    learning: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """sum_b weight_b * sum_c column_weight_c * f(anchor_b . column_c + shift_b), blocked places left out.

    f is softplus (log(1 + e^x)) or the hinge max(0, x). Other arguments as of `weighted_logsumexp`.
    """
    learning = len(column_CD) if learning is None else learning
    return _Pairwise.apply(anchor_BD, column_CD, shift_B, column_weight_C, weight_B, blocked, shape, learning, dtype)
