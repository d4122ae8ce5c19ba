"""Where every piece of every tensor lies: torch's metadata as JSON, and back."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from torchrec_mt.training.checkpoints.commit import FileRecord
from torchrec_mt.training.checkpoints.layout import DTYPE_NAMES, DTYPES


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where a piece lies.

    Args:
        file: in the checkpoint's folder. begin: its first byte there.
        block_rows: rows that share a checksum. blocks: the checksums.
    """

    file: str
    begin: int
    block_rows: int
    blocks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Written:
    """A rank's file as a whole: what of it stands before the pieces, and all of it."""

    head: FileRecord
    whole: FileRecord


@dataclass(frozen=True)
class Index:
    """Torch's metadata, with `Stored` of each piece as its `storage_data`; and the head of each file."""

    metadata: Metadata
    heads: dict[str, FileRecord]

    def dumps(self) -> bytes:
        """As JSON."""
        tensors = {
            name: {
                "dtype": DTYPE_NAMES[tensor.properties.dtype],
                "shape": list(tensor.size),
                "pieces": [self._piece(name, chunk) for chunk in tensor.chunks],
            }
            for name, tensor in self.metadata.state_dict_metadata.items()
            if isinstance(tensor, TensorStorageMetadata)
        }
        heads = {file: {"size": head.size, "xxh3_128": head.xxh3_128} for file, head in self.heads.items()}
        return (json.dumps({"heads": heads, "tensors": tensors}, indent=1) + "\n").encode()

    def _piece(self, name: str, chunk: ChunkStorageMetadata) -> dict[str, Any]:
        stored: Stored = self.metadata.storage_data[MetadataIndex(name, chunk.offsets)]
        return {
            "offsets": list(chunk.offsets),
            "sizes": list(chunk.sizes),
            "file": stored.file,
            "begin": stored.begin,
            "block_rows": stored.block_rows,
            "blocks": list(stored.blocks),
        }

    @classmethod
    def loads(cls, data: bytes) -> "Index":
        """Of bytes whose checksum is right."""
        body = json.loads(data)
        tensors, storage = {}, {}
        for name, tensor in body["tensors"].items():
            chunks = []
            for piece in tensor["pieces"]:
                chunk = ChunkStorageMetadata(torch.Size(piece.pop("offsets")), torch.Size(piece.pop("sizes")))
                chunks.append(chunk)
                storage[MetadataIndex(name, chunk.offsets)] = Stored(**piece | {"blocks": tuple(piece["blocks"])})
            properties = TensorProperties(dtype=DTYPES[tensor["dtype"]])
            tensors[name] = TensorStorageMetadata(properties, torch.Size(tensor["shape"]), chunks)
        heads = {file: FileRecord(**head) for file, head in body["heads"].items()}
        return cls(Metadata(state_dict_metadata=dict(tensors), storage_data=storage), heads)
