"""Rows of different lengths as flat arrays in `.npy` files (compressed rows), memory mapped; and links in that form.

`F.offsets.npy` int64 [N + 1], `F.values.npy` [offsets[-1]]: row i is values[offsets[i] : offsets[i + 1]]. Preparation
writes them block by block, training reads any rows without holding all. An empty array maps too: its file has a header.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def offsets_of(lengths_N: np.ndarray) -> np.ndarray:
    """Where each row starts, and the end: int64 [N + 1]."""
    offsets = np.zeros(len(lengths_N) + 1, np.int64)
    np.cumsum(lengths_N, out=offsets[1:])
    return offsets


def positions_of(offsets: np.ndarray, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the values of some rows lie, in the rows' order: lengths_B, position_L (int64, L = sum of lengths_B)."""
    starts_B = offsets[rows_B]
    lengths_B = offsets[rows_B + 1] - starts_B
    ends_B = np.cumsum(lengths_B)
    total = ends_B[-1] if len(ends_B) else 0
    return lengths_B, np.arange(total) + np.repeat(starts_B - (ends_B - lengths_B), lengths_B)


def open_flat(file: Path) -> np.ndarray:
    """Maps one array for reading."""
    return np.load(file, mmap_mode="r")


def write_flat(file: Path, length: int, dtype: np.dtype, blocks: Iterable[np.ndarray]) -> None:
    """Writes an array of known length through a memory map, block by block. The caller has seen to room on the disk."""
    flat = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=(length,))
    position = 0
    for block in blocks:
        flat[position : position + len(block)] = block
        position += len(block)
    assert position == length, f"{file}: {position} values came, {length} were announced"
    flat.flush()


@dataclass(frozen=True)
class Links:
    """For each of N entities the rows of other entities it is linked to, ascending. Memory mapped.

    Args:
        offsets: int64 [N + 1].
        values: int32 or int64 [offsets[-1]].
    """

    offsets: np.ndarray
    values: np.ndarray

    @classmethod
    def open(cls, folder: Path, name: str) -> "Links":
        """Maps `NAME.offsets.npy` and `NAME.values.npy` of a folder."""
        return cls(open_flat(folder / f"{name}.offsets.npy"), open_flat(folder / f"{name}.values.npy"))

    def of(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The links of some entities, flat: owner_L (position in rows_B, ascending) and id_L, both int64.

        Raises:
            IndexError: a row beyond the last entity.
        """
        lengths_B, position_L = positions_of(self.offsets, rows_B)
        return np.repeat(np.arange(len(rows_B)), lengths_B), self.values[position_L].astype(np.int64)


def links_dtype(linked: int) -> np.dtype:
    """The type of `values` when they are rows of `linked` entities: int32 wherever the last row fits."""
    return np.dtype(np.int32 if linked <= 1 << 31 else np.int64)


def links_bytes(entities: int, links: int, linked: int) -> int:
    """Bytes that `write_links` writes, headers left out."""
    return 8 * (entities + 1) + links_dtype(linked).itemsize * links


def write_links(folder: Path, name: str, lengths_N: np.ndarray, linked: int, blocks: Iterable[np.ndarray]) -> None:
    """Writes `NAME.offsets.npy` and `NAME.values.npy`.

    Args:
        lengths_N: links of each entity.
        linked: number of entities at the other end.
        blocks: the linked rows in order of (entity, row), in pieces of any size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    offsets = offsets_of(lengths_N)
    np.save(folder / f"{name}.offsets.npy", offsets)
    write_flat(folder / f"{name}.values.npy", int(offsets[-1]), links_dtype(linked), blocks)
