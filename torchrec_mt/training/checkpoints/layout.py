"""How a rank's tensors lie in its file: the safetensors layout, and the blocks of rows that have a checksum each.

Safetensors: eight bytes with the length of a JSON header (little endian), the header, the raw bytes. Public tools read
such a file. A piece of a larger tensor has the key NAME[OFFSETS].
"""

import json
import math
from collections.abc import Iterator, Sequence

import torch
import xxhash
from torch import Tensor

BLOCK_BYTES = 8 << 20
"""About as much is read, checked and handed on at once. A rank that wants a part of a piece reads whole blocks."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By their names in safetensors, which are those of the metadata too."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def checksum(data: bytes | memoryview) -> str:
    """xxh3_128, in hex: against accidents, not against malice."""
    return str(xxhash.xxh3_128_hexdigest(data))


def rows_and_bytes(dtype: torch.dtype, sizes: Sequence[int]) -> tuple[int, int]:
    """How many rows a piece has and the bytes of each; a scalar is one row."""
    return (sizes[0] if sizes else 1), math.prod(sizes[1:]) * dtype.itemsize


def block_rows(dtype: torch.dtype, sizes: Sequence[int]) -> int:
    """Rows of a block: as many as fit, at least one."""
    _, row_bytes = rows_and_bytes(dtype, sizes)
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def as_rows(tensor: Tensor) -> Tensor:
    """The tensor with a first dimension, in the same memory."""
    return tensor.detach() if tensor.dim() else tensor.detach().reshape(1)


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def blocks_of(tensor: Tensor, rows: int) -> Iterator[memoryview]:
    """The bytes of so many rows at a time: the tensor's own memory where it is contiguous and on the CPU."""
    tensor = as_rows(tensor)
    if tensor.numel():
        for block in tensor.split(rows):
            yield as_bytes(block.cpu().contiguous())


def piece_key(name: str, shape: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]) -> str:
    """The name of a piece in the file: the tensor's own where it is the whole."""
    return name if tuple(sizes) == tuple(shape) else f"{name}[{','.join(map(str, offsets))}]"


def header(pieces: dict[str, tuple[torch.dtype, Sequence[int]]]) -> tuple[bytes, dict[str, int]]:
    """The head of a file of these pieces, in this order.

    Returns:
        the bytes before the first piece, and where in the file each piece begins.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for key, (dtype, sizes) in pieces.items():
        begin, end = end, end + math.prod(sizes) * dtype.itemsize
        entries[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(sizes), "data_offsets": [begin, end]}
        begins[key] = begin
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps what follows aligned
    head = len(text).to_bytes(8, "little") + text
    return head, {key: len(head) + begin for key, begin in begins.items()}
