"""A tensor that lies in pieces on many ranks, as torch.distributed.checkpoint takes it: saved and loaded in any layout.

Plain data: it knows no rank and no group. Each rank makes one of what it holds.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class Pieces:
    """This rank's pieces of a tensor; torch calls the protocol that it implements `_Checkpointable`.

    Several ranks may hold the same piece, which is then saved once; pieces that differ must not overlap. When loading,
    every piece is filled, whichever other ranks hold it.

    Args:
        shape: of the whole tensor.
        dtype: of it; a rank may hold no piece to tell it by.
        pieces: where each begins in the whole, and its values.

    Raises:
        ValueError: a piece of another dtype or number of dimensions, outside of the whole, or over another piece.
    """

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, pieces: Iterable[tuple[Sequence[int], Tensor]]
    ) -> None:
        self.shape = torch.Size(shape)
        self.dtype = dtype
        # An empty piece may begin where another does, and torch tells pieces by where they begin.
        self.pieces = [(torch.Size(offsets), tensor.detach()) for offsets, tensor in pieces if tensor.numel()]
        for offsets, tensor in self.pieces:
            if tensor.dtype != dtype or not (tensor.dim() == len(offsets) == len(self.shape)):
                raise ValueError(f"a {tensor.dtype} piece {[*tensor.shape]} at {[*offsets]}, of {dtype} {[*shape]}")
            if not all(o >= 0 and o + n <= whole for o, n, whole in zip(offsets, tensor.shape, shape, strict=True)):
                raise ValueError(f"a piece {[*tensor.shape]} at {[*offsets]} is no part of {[*shape]}")
        self._check_overlap()

    def _check_overlap(self) -> None:
        boxes = sorted((tuple(offsets), tuple(tensor.shape)) for offsets, tensor in self.pieces)
        for i, (offsets, sizes) in enumerate(boxes):
            for others, lengths in boxes[i + 1 :]:
                if others and others[0] >= offsets[0] + sizes[0]:
                    break  # sorted by their first row: none of those that follow begins earlier
                if all(a < b + m and b < a + n for a, n, b, m in zip(offsets, sizes, others, lengths, strict=True)):
                    raise ValueError(f"pieces overlap: {sizes} at {offsets} and {lengths} at {others}")

    def like(self, tensors: Iterable[Tensor]) -> "Pieces":
        """The same layout over other tensors, one for each of `pieces`."""
        return Pieces(
            self.shape,
            self.dtype,
            [(offsets, tensor) for (offsets, _), tensor in zip(self.pieces, tensors, strict=True)],
        )

    def size(self) -> torch.Size:
        """The whole's shape, which torch compares with the saved one."""
        return self.shape

    def __create_write_items__(self, fqn: str, object: object) -> list[WriteItem]:
        pieces = self.pieces
        if not math.prod(self.shape):  # some rank must say that there is such a tensor
            pieces = [(torch.Size([0] * len(self.shape)), torch.empty(self.shape, dtype=self.dtype))]
        return [
            WriteItem(
                index=MetadataIndex(fqn, offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets=offsets, sizes=tensor.shape),
                    properties=TensorProperties(dtype=self.dtype),
                    size=self.shape,
                ),
            )
            for offsets, tensor in pieces
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offsets=offsets, sizes=tensor.shape) for offsets, tensor in self.pieces]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        for offsets, tensor in self.pieces:
            if offsets == index.offset:
                return tensor
        if not math.prod(self.shape):
            return torch.empty(self.shape, dtype=self.dtype)
        raise ValueError(f"no piece of '{index.fqn}' at {index.offset}")
