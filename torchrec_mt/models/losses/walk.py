"""Sums over all B x C logits, loss and gradient in one pass over chunks of rows: the matrix never exists.

Everything expensive in a loss is one of two sums, `weighted_logsumexp` or `weighted_pairwise`; what is left over is
linear in a few scores of each anchor and is written in plain PyTorch (`terms.py`).

Legend: B anchors, C columns, K private logits of an anchor (its positive and its own hard negatives), D width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from torchrec_mt.models.losses.blocked import Blocked

Precision = Literal["auto", "float32", "bfloat16"]

_LOGITS_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Logits of a chunk: on a CPU what its caches hold (4 to 8 MiB), on a GPU enough to fill it."""
_MIN_ROWS = 8
_LOG2E = math.log2(math.e)
_NOTHING = -1e30
"""A logit whose exponential is 0; finite, since 0 * infinity is no number."""
_LARGEST_EXPONENT = 100
"""Of a sum of powers of 2 whose inverse, times a weight, must be a normal float32 (they end at 2^-126)."""


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
    """Rows [start, stop) of the logits: logits_RC, a buffer to be overwritten, in the dtype of the products."""

    start: int
    stop: int
    logits_RC: Tensor


class _Walk:
    """Chunks of the logits anchor_BX @ column_CX.T, blocked places at -inf; and the way back.

    Args:
        width: the first dimensions D that want a gradient. dtype: of the operands and results of all matrix products;
            sums inside a product are float32.
    """

    def __init__(
        self, anchor_BX: Tensor, column_CX: Tensor, blocked: Blocked, dtype: torch.dtype, *, width: int
    ) -> None:
        self._blocked, self._dtype = blocked, dtype
        self._anchor_BX, self._column_CX = anchor_BX.to(dtype), column_CX.to(dtype)
        self._column_CD = self._column_CX[:, :width].contiguous()
        rows = max(_MIN_ROWS, _LOGITS_AT_ONCE[anchor_BX.device.type] // max(1, len(column_CX)))
        rows -= rows % _MIN_ROWS
        self._chunks = [(start, min(start + rows, len(anchor_BX))) for start in range(0, len(anchor_BX), rows)]
        self._buffer_RC = anchor_BX.new_empty(min(rows, len(anchor_BX)), len(column_CX), dtype=dtype)

    def __iter__(self) -> Iterator[Chunk]:
        edges = torch.tensor([0, *(stop for _, stop in self._chunks)], device=self._anchor_BX.device)
        # A wait for the device: where each chunk's blocked places begin.
        bounds = torch.searchsorted(self._blocked.row_L, edges).tolist()
        columns = self._buffer_RC.shape[1]
        place_L = self._blocked.row_L * columns + self._blocked.column_L
        for number, (start, stop) in enumerate(self._chunks):
            logits_RC = self._buffer_RC[: stop - start]
            torch.mm(self._anchor_BX[start:stop], self._column_CX.T, out=logits_RC)
            here_L = place_L[bounds[number] : bounds[number + 1]] - start * columns
            logits_RC.view(-1).index_fill_(0, here_L, -torch.inf)
            yield Chunk(start, stop, logits_RC)

    def pull_back(self, slope_RC: Tensor, weighted_RD: Tensor, d_anchor_RD: Tensor, d_column_CD: Tensor) -> None:
        """The gradient of a chunk whose logits have the gradient slope_RC, up to a factor per row.

        Args:
            slope_RC: in the dtype of the products. weighted_RD: the chunk's anchors, times that factor.
            d_anchor_RD: written, still to be multiplied by the factor.
            d_column_CD: added to; may be of the first columns only.
        """
        d_anchor_RD.copy_(slope_RC @ self._column_CD)
        slope_CR = slope_RC[:, : len(d_column_CD)].T
        if self._dtype == d_column_CD.dtype:
            d_column_CD.addmm_(slope_CR, weighted_RD)
        else:
            d_column_CD.add_(slope_CR @ weighted_RD.to(self._dtype))


def _round_up(count: int) -> int:
    """`count` or up to an eighth more: few different shapes, since a CPU's bfloat16 products are compiled per shape."""
    step = max(8, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step


def _padded(x_CN: Tensor, value: float = 0.0) -> Tensor:
    """Further rows (or numbers) of a value, up to a round count."""
    sides = [0, 0] * (x_CN.dim() - 1) + [0, _round_up(len(x_CN)) - len(x_CN)]
    return torch.nn.functional.pad(x_CN, sides, value=value)


def _with_sums(
    anchor_BD: Tensor, row_B: Tensor, column_CD: Tensor, column_C: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Operands anchor_BX, column_CX whose product is anchor_BD @ column_CD.T + row_B[:, None] + column_C.

    As dimensions of the product the summands cost no pass over the logits, and a low precision rounds the sum once.
    """
    row_BP, column_CP = _parts(row_B, dtype), _parts(column_C, dtype)
    anchor_BX = torch.cat([anchor_BD, row_BP, torch.ones_like(row_BP)], dim=1)
    return anchor_BX, torch.cat([column_CD, torch.ones_like(column_CP), column_CP], dim=1)


def _parts(x_N: Tensor, dtype: torch.dtype) -> Tensor:
    """x_N as a sum of numbers of the dtype: x_NP, one part in float32, two (16 bits) in bfloat16."""
    if dtype == x_N.dtype:
        return x_N[:, None]
    high_N = x_N.to(dtype).to(x_N.dtype)
    return torch.stack([high_N, x_N - high_N], dim=1)


class _LogSumExp(torch.autograd.Function):
    """Powers of 2 (the faster exponential), relative to a reference per row: its best private logit."""

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
        binary_BD, offset_C, reference_B = _LOG2E * anchor_BD, _LOG2E * offset_C, _LOG2E * private_BK.amax(dim=1)
        if _may_overflow(binary_BD, column_CD, reference_B, offset_C):
            operands = _with_sums(binary_BD, torch.zeros_like(reference_B), column_CD, offset_C, dtype)
            tops = _Walk(*operands, blocked, dtype, width=0)
            top_B = torch.cat([chunk.logits_RC.amax(dim=1).float() for chunk in tops])
            reference_B = torch.maximum(reference_B, top_B)
        private_BK = (_LOG2E * private_BK - reference_B[:, None]).exp2_()
        sum_B = private_BK.sum(dim=1)
        d_anchor_BD, d_column_CD = torch.empty_like(anchor_BD), torch.zeros_like(column_CD[: _round_up(learning)])
        operands = _with_sums(binary_BD, -reference_B, column_CD, offset_C, dtype)
        walk = _Walk(*operands, blocked, dtype, width=column_CD.shape[1])
        for chunk in walk:
            here = slice(chunk.start, chunk.stop)
            share_RC = chunk.logits_RC.exp2_()
            sum_B[here] += share_RC.sum(dim=1, dtype=sum_B.dtype)
            weighted_RD = anchor_BD[here] * (weight_B[here] / sum_B[here])[:, None]
            walk.pull_back(share_RC, weighted_RD, d_anchor_BD[here], d_column_CD)
        factor_B1 = (weight_B / sum_B)[:, None]
        ctx.save_for_backward(d_anchor_BD.mul_(factor_B1), d_column_CD[:learning], private_BK.mul_(factor_B1))
        ctx.idle = len(column_CD) - learning
        return weight_B @ (reference_B / _LOG2E + sum_B.log())

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        d_anchor_BD, d_column_CD, d_private_BK = ctx.saved_tensors
        d_column_CD = torch.nn.functional.pad(scale * d_column_CD, (0, 0, 0, ctx.idle))
        return scale * d_anchor_BD, d_column_CD, scale * d_private_BK, None, None, None, None, None


def _may_overflow(anchor_BD: Tensor, column_CD: Tensor, reference_B: Tensor, offset_C: Tensor) -> bool:
    """Could 2 ** (logit - reference) leave float32, summed over the columns? Asks bounds, not the logits themselves."""
    if not len(column_CD) or not len(anchor_BD):
        return False
    longest = torch.linalg.vector_norm(column_CD, dim=1).amax()
    bound_B = torch.linalg.vector_norm(anchor_BD, dim=1) * longest + offset_C.amax() - reference_B
    return bool(bound_B.amax() > _LARGEST_EXPONENT - math.log2(len(column_CD)))


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
    column_CD, offset_C = _padded(column_CD), _padded(offset_C, _NOTHING)
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
        walk = _Walk(anchor_BD, column_CD, blocked, dtype, width=column_CD.shape[1])
        total = anchor_BD.new_zeros(())
        d_anchor_BD, d_shift_B = torch.empty_like(anchor_BD), torch.empty_like(shift_B)
        d_column_CD = torch.zeros_like(column_CD[: _round_up(learning)])
        for chunk in walk:
            here = slice(chunk.start, chunk.stop)
            logits_RC = chunk.logits_RC + shift_B[here, None]
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
            weighted_RD = anchor_BD[here] * weight_B[here, None]
            walk.pull_back(slope_RC.to(dtype), weighted_RD, d_anchor_BD[here], d_column_CD)
        ctx.save_for_backward(d_anchor_BD.mul_(weight_B[:, None]), d_column_CD[:learning], d_shift_B)
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
    column_CD, column_weight_C = _padded(column_CD), _padded(column_weight_C)
    return _Pairwise.apply(anchor_BD, column_CD, shift_B, column_weight_C, weight_B, blocked, shape, learning, dtype)
