"""The digest of a prepared dataset: SHA-256 over its columns, whatever the encoding of the files that hold them."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from torchrec_mt.data.links import open_flat

_BLOCK = 1 << 20


def content_digest(folder: Path) -> str:
    """Digest of a prepared dataset: the names of its files, and what they hold, types and values in order.

    The arrays of `store/` are left out: they say again what `entities/` says.
    """
    digest = hashlib.sha256()
    names = {path.relative_to(folder): path for suffix in ("parquet", "npy") for path in folder.rglob(f"*.{suffix}")}
    for name, path in sorted(names.items(), key=lambda item: item[0].as_posix()):
        if name.parts[0] != "store" and not any(part.startswith(".") for part in name.parts):
            content = _file_digest(path) if path.suffix == ".parquet" else _array_digest(path)
            digest.update(f"{name.as_posix()}\n{content}\n".encode())
    return digest.hexdigest()


def _array_digest(path: Path) -> str:
    array = open_flat(path)
    digest = hashlib.sha256(f"{array.dtype.name} {len(array)}\n".encode())
    for start in range(0, len(array), _BLOCK):
        digest.update(array[start : start + _BLOCK].astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        # Lengths and values go to hashes of their own: how a column is cut into batches must not matter.
        hashes = {name: (hashlib.sha256(), hashlib.sha256()) for name in names}
        for batch in file.iter_batches():
            for name in names:
                _update(batch.column(name), *hashes[name])
        lines = [f"{file.metadata.num_rows}"]
        lines += [
            f"{name} {file.schema_arrow.field(name).type} {lengths.hexdigest()} {values.hexdigest()}"
            for name, (lengths, values) in hashes.items()
        ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _update(column: pa.Array, lengths: "hashlib._Hash", values: "hashlib._Hash") -> None:
    if pa.types.is_list(column.type):
        lengths.update(column.value_lengths().to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        _update(column.flatten(), lengths, values)
    elif pa.types.is_string(column.type):
        lengths.update(pc.binary_length(column).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        binary = column.cast(pa.binary())
        offsets = np.frombuffer(binary.buffers()[1], np.int32)[binary.offset : binary.offset + len(binary) + 1]
        if len(binary) and offsets[-1] > offsets[0]:
            values.update(memoryview(binary.buffers()[2])[int(offsets[0]) : int(offsets[-1])])
    else:
        numbers = column.to_numpy(zero_copy_only=False)
        values.update(np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<")).tobytes())
