"""A tensor of which each rank holds pieces: what torch.distributed.checkpoint saves, and loads into other pieces."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


@dataclass
class Pieces:
    """Pieces of a tensor, by torch's protocol `torch.distributed._checkpointable`.

    Args:
        shape: of the whole tensor. pieces: this rank's (offset in each dimension, tensor), no two at one offset;
            several ranks may hold the same piece.
    """

    shape: tuple[int, ...]
    pieces: list[tuple[tuple[int, ...], Tensor]]

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=_chunk(offsets, tensor),
                    properties=TensorProperties.create_from_tensor(tensor),
                    size=torch.Size(self.shape),
                ),
            )
            for offsets, tensor in self.pieces
            if tensor.numel()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [_chunk(offsets, tensor) for offsets, tensor in self.pieces if tensor.numel()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return next(tensor for offsets, tensor in self.pieces if offsets == index.offset and tensor.numel())


def _chunk(offsets: tuple[int, ...], tensor: Tensor) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=tensor.size())
