"""The digest of a prepared dataset: SHA-256 over its columns, whatever the encoding of the files that hold them."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def content_digest(folder: Path) -> str:
    """Digest of every Parquet file of a prepared dataset: names, columns, types and values in order."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.parquet"), key=lambda path: path.relative_to(folder).as_posix()):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            digest.update(f"{path.relative_to(folder).as_posix()}\n{_file_digest(path)}\n".encode())
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
