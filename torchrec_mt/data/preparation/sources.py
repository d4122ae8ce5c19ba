"""Raw files: which ones a `path` means, what they look like, and their fingerprint. First step of reading.

CSV is turned into Parquet once (by Arrow, typed by what the schema wants of a column): engines only ever read Parquet.
"""

import glob
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import FORMAT
from torchrec_mt.errors import UserError
from torchrec_mt.schema import Schema

Want = Literal["value", "text", "number", "moment", "group", "list", "ids", "vector"]
"""What a column is wanted as: id, label or category; text; number; time or order; part of a group; list of values; list
of ids; floats."""

_SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".csv.gz": "csv"}


@dataclass(frozen=True)
class Source:
    """The files behind one `path` of the schema; `key` is that path's key, for messages."""

    key: str
    path: str
    files: tuple[Path, ...]
    kind: str


def find_source(key: str, path: str, raw: Path) -> Source:
    """Resolves a file, glob or folder (relative to `raw`, or absolute).

    Raises:
        UserError: nothing there, or files of unknown or mixed kinds.
    """
    full = raw / path
    if full.is_dir():
        files = [f for f in sorted(full.rglob("*")) if f.is_file() and _kind(f) and not _hidden(f.relative_to(full))]
    elif full.is_file():
        files = [full]
    else:
        files = [Path(file) for file in sorted(glob.glob(str(full), recursive=True)) if Path(file).is_file()]
    if not files:
        raise UserError(f"{key}: no file at '{full}' (a file, a glob or a folder of Parquet or CSV files)")
    kinds = {file: _kind(file) for file in files}
    for file, kind in kinds.items():
        if kind is None:
            raise UserError(f"{key}: '{file}' is neither .parquet nor .csv (.csv.gz)")
    if len(set(kinds.values())) > 1:
        raise UserError(f"{key}: '{full}' mixes Parquet and CSV files; keep one kind")
    return Source(key, path, tuple(files), str(kinds[files[0]]))


def _hidden(relative: Path) -> bool:
    return any(part.startswith((".", "_")) for part in relative.parts)


def _kind(file: Path) -> str | None:
    name = file.name.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def all_sources(schema: Schema, raw: Path) -> dict[str, Source]:
    """Every source of a schema by its key: `entities.E.path`, `tasks.T.pairs.path`, `tasks.T.truth.path`."""
    paths = {f"entities.{name}.path": entity.path for name, entity in schema.entities.items()}
    for name, task in schema.tasks.items():
        paths[f"tasks.{name}.pairs.path"] = task.pairs.path
        if task.truth is not None:
            paths[f"tasks.{name}.truth.path"] = task.truth.path
    return {key: find_source(key, path, raw) for key, path in paths.items()}


def describe_files(sources: Mapping[str, Source], raw: Path) -> dict[str, dict[str, int | str]]:
    """Path (relative to `raw` where it lies inside) -> size and modification time of every file."""
    files = sorted({file for source in sources.values() for file in source.files})
    described: dict[str, dict[str, int | str]] = {}
    for file in files:
        stat = file.stat()
        name = str(file.relative_to(raw)) if file.is_relative_to(raw) else str(file)
        described[name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return described


def fingerprint(schema: Schema, name: str, files: Mapping[str, Mapping[str, int | str]], extra: str) -> str:
    """SHA-256 of everything a prepared dataset depends on, without reading the data."""
    content = {"format": FORMAT, "name": name, "schema": asdict(schema), "files": files, "extra": extra}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def parquet_files(source: Source, columns: Mapping[str, Want], scratch: Path) -> list[Path]:
    """The source as Parquet files holding the wanted columns, each of a fitting type.

    Raises:
        UserError: unreadable or truncated file, malformed CSV, missing column, column of another type than wanted.
    """
    if source.kind == "csv":
        return [_csv_to_parquet(source, file, columns, scratch) for file in source.files]
    for file in source.files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, pa.ArrowException) as error:
            raise UserError(
                f"{source.key}: '{file}' is not a whole Parquet file ({_first_line(error)}); write it again"
            ) from None
        except PermissionError:
            raise UserError(f"{source.key}: no right to read '{file}'") from None
        _check_columns(source, file, schema, columns)
    return list(source.files)


def _check_columns(source: Source, file: Path, schema: pa.Schema, columns: Mapping[str, Want]) -> None:
    for column, want in columns.items():
        if schema.get_field_index(column) < 0:
            known = ", ".join(f"'{name}'" for name in schema.names)
            raise UserError(f"{source.key}: '{file}' has no column '{column}' (it has: {known})")
        kind = schema.field(column).type
        if not _fits(kind, want):
            raise UserError(
                f"{source.key}: column '{column}' of '{file}' is {kind}, but {_EXPECTED[want]} is needed here"
            )


_EXPECTED: dict[Want, str] = {
    "value": "a string or an integer",
    "text": "a string",
    "number": "a number",
    "moment": "a number, a date, a time stamp or a string",
    "group": "a string, an integer, a date or a time stamp",
    "list": "a list of strings or integers (or a string with a `separator`, in the schema)",
    "ids": "a list of strings or integers",
    "vector": "a list of numbers",
}


def _fits(kind: pa.DataType, want: Want) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = {"list": "value", "ids": "value", "vector": "number"}.get(want)
        return inner is not None and _fits(kind.value_type, inner)  # type: ignore[arg-type]
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)
    integer = types.is_integer(kind)
    number = integer or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind)
    moment = types.is_timestamp(kind) or types.is_date(kind)
    match want:
        case "value":
            return text or integer or types.is_boolean(kind)
        case "text":
            return text
        case "number":
            return number
        case "moment":
            return (text or number or moment) and not types.is_null(kind)
        case "group":
            return text or integer or moment or types.is_boolean(kind)
    return False


def _csv_to_parquet(source: Source, file: Path, columns: Mapping[str, Want], scratch: Path) -> Path:
    """Strings for ids, categories and text (so '007' stays '007'), floats for numbers; only times are guessed."""
    types = {
        name: pa.float64() if want == "number" else pa.string() for name, want in columns.items() if want != "moment"
    }
    for name, want in columns.items():
        if want in ("list", "ids", "vector"):
            raise UserError(
                f"{source.key}: column '{name}' must be {_EXPECTED[want]}, which CSV cannot hold; use Parquet"
            )
    convert = pa.csv.ConvertOptions(
        column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True
    )
    options = {"parse_options": pa.csv.ParseOptions(newlines_in_values=True), "convert_options": convert}
    tag = hashlib.sha256(f"{source.key}|{file}|{sorted(columns.items())}".encode()).hexdigest()[:24]
    target = scratch / f"{tag}.parquet"
    try:
        with pa.csv.open_csv(file, read_options=pa.csv.ReadOptions(block_size=16 << 20), **options) as reader:
            _check_columns(source, file, reader.schema, columns)
            with pq.ParquetWriter(target, pa.schema([reader.schema.field(name) for name in columns])) as writer:
                for batch in reader:
                    writer.write_batch(batch.select(list(columns)))
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise UserError(
            f"{source.key}: '{file}' is not a well-formed CSV file ({_first_line(error)}); mend the file"
        ) from None
    except PermissionError:
        raise UserError(f"{source.key}: no right to read '{file}'") from None
    return target


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:300]
