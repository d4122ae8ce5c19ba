"""A folder of raw tables that a source makes: what the sources have in common.

Reads columns of somebody's Parquet files with errors a user can act on, and keeps a folder of raw tables with a
marker that says what they were made from: made again from the same, nothing is written.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.errors import UserError, first_line

MARKER = "source.json"
NamedParts = tuple[str, Iterable[pa.Table | pa.RecordBatch]]
"""A table's name, and the table in parts."""


def read_columns(file: Path, columns: Mapping[str, pa.DataType], *, remedy: str) -> pd.DataFrame:
    """Columns of a Parquet file, cast to the types given.

    Raises:
        UserError: a missing or unreadable file, a missing column, a column of another type.
    """
    try:
        table = pq.read_table(file)
    except FileNotFoundError:
        raise UserError(f"no file '{file}': {remedy}") from None
    except PermissionError:
        raise UserError(f"no right to read '{file}': {remedy}") from None
    except (pa.ArrowException, OSError) as error:  # a damaged file is an OSError without a number
        raise UserError(f"'{file}' is not a readable Parquet file ({first_line(error)}): {remedy}") from None
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        known = ", ".join(f"'{name}'" for name in table.column_names)
        raise UserError(f"'{file}' has no column '{missing[0]}' (it has: {known}): {remedy}")
    cast = {}
    for name, kind in columns.items():
        try:
            cast[name] = table[name].cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            found = table.schema.field(name).type
            raise UserError(
                f"column '{name}' of '{file}' is {found}, not {kind} ({first_line(error)}): {remedy}"
            ) from None
    return pa.table(cast).to_pandas()


def content_digest(files: Sequence[Path], *, remedy: str) -> dict[str, str]:
    """File name -> SHA-256 of its content.

    Raises:
        UserError: a missing file.
    """
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"no file '{missing[0]}': {remedy}")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def write_tables(folder: Path, made_from: Mapping[str, object], make: Callable[[], Iterable[NamedParts]]) -> None:
    """Writes `NAME.parquet` per table that `make` gives, unless the folder holds the tables made from the same.

    The marker says "not whole" while files are written, so a killed run is never taken for a finished one.

    Args:
        made_from: what the tables depend on, as JSON values.
        make: names and parts of tables; may be lazy, then each table is written before the next is made.

    Raises:
        UserError: a folder that holds Parquet files of somebody else, or a marker that cannot be read.
    """
    wanted = json.loads(json.dumps(made_from))
    if _holds(folder, wanted):
        return
    tables = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"dataset.path: '{folder}' cannot be made ({error}): choose another folder") from error
    _mark(folder, {"whole": False})
    sizes = {name: _write(folder / f"{name}.parquet", parts) for name, parts in tables}
    _mark(folder, {"whole": True, "made_from": wanted, "sizes": sizes})


def frames(tables: Mapping[str, pd.DataFrame]) -> list[NamedParts]:
    """Data frames as `write_tables` takes them."""
    return [
        (name, [pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)])
        for name, table in tables.items()
    ]


def _write(file: Path, parts: Iterable[pa.Table | pa.RecordBatch]) -> int:
    """One Parquet file from its parts, seen under its name only when whole; returns its size."""
    parts = iter(parts)
    first = next(parts)
    aside = file.with_name(f"{file.name}.partial")
    with pq.ParquetWriter(aside, first.schema, compression="zstd", store_schema=False) as writer:
        for part in chain([first], parts):
            writer.write(part)
    size = aside.stat().st_size
    aside.replace(file)
    return size


def _holds(folder: Path, wanted: dict[str, object]) -> bool:
    marker = folder / MARKER
    if not marker.exists():
        strange = sorted(file.name for file in folder.glob("*.parquet"))
        if strange:
            raise UserError(
                f"'{folder}' holds {strange[0]} but no {MARKER}, so it is not ours to write to: "
                "remove it, or choose another dataset.path"
            )
        return False
    try:
        state = json.loads(marker.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{marker}' is not readable ({error}): delete the folder and prepare again") from None
    if not (isinstance(state, dict) and state.get("whole") is True and state.get("made_from") == wanted):
        return False
    files = {folder / f"{name}.parquet": size for name, size in state.get("sizes", {"": 0}).items()}
    return all(file.is_file() and file.stat().st_size == size for file, size in files.items())


def _mark(folder: Path, state: dict[str, object]) -> None:
    aside = folder / f"{MARKER}.partial"
    aside.write_text(json.dumps(state, indent=1) + "\n")
    aside.replace(folder / MARKER)
