"""Features of an entity as flat arrays in `.npy` files, memory mapped: random access to any entity without holding all.

Bags are in compressed-row form: `F.offsets.npy` int64 [N + 1], `F.values.npy` int32 [offsets[-1]], and for weighted
bags `F.weights.npy` float32 of the same length. Dense features are `F.dense.npy` float32 [N, width].
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import EntityInfo, PreparedDataset
from torchrec_mt.data.links import offsets_of, open_flat, positions_of, write_flat


@dataclass(frozen=True)
class Bags:
    """Bags of E entities: values and weights of length sum(lengths_E)."""

    lengths_E: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None = None


def write_store(entity_file: Path, folder: Path, info: EntityInfo) -> None:
    """Writes the flat arrays of one entity from its Parquet file, row group by row group."""
    folder.mkdir(parents=True, exist_ok=True)
    file = pq.ParquetFile(entity_file)
    for name, feature in info.features.items():
        if feature.table is None:
            dense = np.lib.format.open_memmap(
                folder / f"{name}.dense.npy", mode="w+", dtype=np.float32, shape=(info.count, feature.width)
            )
            row = 0
            for batch in file.iter_batches(columns=[name]):
                flat = batch.column(0).flatten() if pa.types.is_nested(batch.column(0).type) else batch.column(0)
                block = flat.to_numpy(zero_copy_only=False).reshape(-1, feature.width)
                dense[row : row + len(block)] = block
                row += len(block)
            dense.flush()
        else:
            _write_bags(file, folder, name, f"{name}__weight" if feature.weighted else None)


def _write_bags(file: pq.ParquetFile, folder: Path, name: str, weight: str | None) -> None:
    lengths = [np.zeros(0, np.int64)]
    lengths += [batch.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) for batch in _column(file, name)]
    offsets = offsets_of(np.concatenate(lengths))
    np.save(folder / f"{name}.offsets.npy", offsets)
    kinds = [("values", name, np.int32)] + ([("weights", weight, np.float32)] if weight else [])
    for part, column, dtype in kinds:
        blocks = (batch.flatten().to_numpy(zero_copy_only=False) for batch in _column(file, column))
        write_flat(folder / f"{name}.{part}.npy", int(offsets[-1]), np.dtype(dtype), blocks)


def _column(file: pq.ParquetFile, name: str) -> Iterator[pa.Array]:
    return (batch.column(0) for batch in file.iter_batches(columns=[name]))


class EntityStore:
    """Random access to the features of one entity, memory mapped."""

    def __init__(self, arrays: Mapping[str, np.ndarray], info: EntityInfo) -> None:
        self._arrays = arrays
        self.info = info

    @classmethod
    def open(cls, dataset: PreparedDataset, entity: str) -> "EntityStore":
        """Maps the arrays of an entity of a prepared dataset."""
        folder, info = dataset.store_path(entity), dataset.manifest.entities[entity]
        arrays: dict[str, np.ndarray] = {}
        for name, feature in info.features.items():
            parts = ["dense"] if feature.table is None else ["offsets", "values"] + ["weights"] * feature.weighted
            for part in parts:
                file = folder / f"{name}.{part}.npy"
                with dataset.reading(file):
                    arrays[f"{name}.{part}"] = open_flat(file)
        return cls(arrays, info)

    def bags(self, feature: str, entities_E: np.ndarray) -> Bags:
        """The bags of some entities, in their order."""
        lengths_E, positions = positions_of(self._arrays[f"{feature}.offsets"], entities_E)
        weights = self._arrays.get(f"{feature}.weights")
        return Bags(
            lengths_E=lengths_E,
            values=self._arrays[f"{feature}.values"][positions],
            weights=None if weights is None else weights[positions],
        )

    def dense(self, entities_E: np.ndarray) -> np.ndarray:
        """All dense features of some entities, side by side in declared order: dense_ED (float32)."""
        names = [name for name, feature in self.info.features.items() if feature.table is None]
        if not names:
            return np.zeros((len(entities_E), 0), np.float32)
        return np.concatenate([self._arrays[f"{name}.dense"][entities_E] for name in names], axis=1)
