"""Layouts of a tensor over ranks, and tensors whose every bit matters."""

import torch
from torch import Tensor

from torchrec_mt.distributed.pieces import Pieces

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
LAYOUTS = ("plain", "rows", "columns", "grid", "one_rank", "copies")


def any_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Random bits, NaNs of every kind among them."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator) == 1
    tensor = torch.empty(shape, dtype=dtype)
    tensor.view(-1).view(torch.uint8).random_(0, 256, generator=generator)
    return tensor


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Also of NaNs, and of dtypes."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)))


def boxes(
    shape: tuple[int, ...], layout: str, rank: int, world_size: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Begin and end of a rank's pieces."""

    def part(size: int, i: int, of: int) -> tuple[int, int]:
        return size * i * i // (of * of), size * (i + 1) * (i + 1) // (of * of)  # uneven, the first ones often empty

    whole = ((0,) * len(shape), shape)
    match layout:
        case "rows":
            start, end = part(shape[0], rank, world_size)
            return [((start, *whole[0][1:]), (end, *shape[1:]))]
        case "columns":
            start, end = part(shape[-1], rank, world_size)
            return [((*whole[0][:-1], start), (*shape[:-1], end))]
        case "grid" if (
            len(shape) > 1
        ):  # every rank has a part of every third of the rows, from the last column to the first
            cells = []
            for third in range(3):
                start, end = part(shape[0], third, 3)
                left, right = part(shape[-1], world_size - 1 - rank, world_size)
                cells.append(((start, *whole[0][1:-1], left), (end, *shape[1:-1], right)))
            return cells
        case "one_rank":
            return [whole] if rank == world_size - 1 else []
        case _:
            return [whole]


def laid_out(whole: Tensor, layout: str, rank: int, world_size: int) -> Tensor | Pieces:
    """What a rank holds of the tensor; pieces are views of it, most of them not contiguous."""
    if layout == "plain":
        return whole
    pieces = []
    for begin, end in boxes(tuple(whole.shape), layout, rank, world_size):
        pieces.append((begin, whole[tuple(slice(b, e) for b, e in zip(begin, end, strict=True))]))
    return Pieces(whole.shape, whole.dtype, pieces)
