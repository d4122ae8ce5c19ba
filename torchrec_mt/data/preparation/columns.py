"""Raw files as Parquet whose columns are what the schema wants of them. Second step of reading, after `sources.py`.

CSV is turned into Parquet once (by Arrow, typed by what is wanted of a column): engines only ever read Parquet.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from torchrec_mt.data.preparation.sources import Source
from torchrec_mt.errors import UserError, first_line

Want = Literal["value", "text", "number", "moment", "group", "list", "ids", "vector"]
"""What a column is wanted as: id, label or category; text; number; time or order; part of a group; list of values; list
of ids; floats."""


def parquet_files(source: Source, columns: Mapping[str, Want], scratch: Path) -> list[Path]:
    """The source as Parquet files holding the wanted columns, each of a fitting type.

    Raises:
        UserError: unreadable or truncated file, malformed CSV, missing column, column of another type than wanted.
    """
    files = list(source.files)
    if source.kind == "csv":
        files = [_csv_to_parquet(source, file, columns, scratch) for file in files]
    schemas = [_read_schema(source, file) for file in files]
    for file, schema in zip(source.files, schemas, strict=True):
        _check_columns(source, file, schema, columns)
    _check_same(source, schemas, columns)
    return files


def column_names(source: Source) -> list[str]:
    """Columns of a source's first file; none if it cannot be read, which `parquet_files` explains."""
    try:
        if source.kind == "csv":
            with pa.csv.open_csv(source.files[0]) as reader:
                return reader.schema.names
        return pq.read_schema(source.files[0]).names
    except (pa.ArrowException, OSError):
        return []


def _read_schema(source: Source, file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except PermissionError:
        raise UserError(f"{source.key}: no right to read '{file}'") from None
    except (pa.ArrowException, OSError) as error:  # a damaged footer is an OSError without a number
        raise UserError(
            f"{source.key}: '{file}' is not a whole Parquet file ({first_line(error)}); write it again"
        ) from None


def damaged_file(source: Source) -> str:
    """Which file of a source that an engine could not read is damaged, as far as Arrow can tell; else the source."""
    for file in source.files if source.kind == "parquet" else ():
        try:
            with pq.ParquetFile(file) as opened:
                for _ in opened.iter_batches():
                    pass
        except (pa.ArrowException, OSError):
            return str(file)
    return str(source.files[0]) if len(source.files) == 1 else source.path


def _check_columns(source: Source, file: Path, schema: pa.Schema, columns: Mapping[str, Want]) -> None:
    for column, want in columns.items():
        same = [name for name in schema.names if name.lower() == column.lower()]
        if column not in same:
            known = ", ".join(f"'{name}'" for name in schema.names)
            raise UserError(f"{source.key}: '{file}' has no column '{column}' (it has: {known})")
        if len(same) > 1:
            raise UserError(
                f"{source.key}: '{file}' has {len(same)} columns called '{column}' "
                f"({', '.join(map(repr, same))}; upper and lower case count as one): rename or drop the others"
            )
        kind = schema.field(column).type
        if not _fits(kind, want):
            raise UserError(
                f"{source.key}: column '{column}' of '{file}' is {kind}, but {_EXPECTED[want]} is needed here"
            )


def _check_same(source: Source, schemas: list[pa.Schema], columns: Mapping[str, Want]) -> None:
    """The files of a source must agree on what a column is: engines would turn numbers and times into strings."""
    for column, want in columns.items():
        first: tuple[str, Path, pa.DataType] | None = None
        for file, schema in zip(source.files, schemas, strict=True):
            kind = schema.field(column).type
            family = _family(kind, want)
            if family is None:
                continue
            first = first or (family, file, kind)
            if family != first[0]:
                raise UserError(
                    f"{source.key}: column '{column}' is {first[2]} in '{first[1]}', but {kind} in '{file}'; "
                    "store it as one type in all files"
                )


def _family(kind: pa.DataType, want: Want) -> str | None:
    """Types of one family mean the same in one column. None: nothing but nulls, which agree with everything."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _family(kind.value_type, want)
    if types.is_null(kind):
        return None
    if types.is_boolean(kind):
        return "boolean"
    if types.is_timestamp(kind) or types.is_date(kind):
        return "time with a zone" if types.is_timestamp(kind) and kind.tz is not None else "time"
    if want in ("number", "moment", "vector"):
        return "string" if types.is_string(kind) or types.is_large_string(kind) else "number"
    return "name"


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
    except PermissionError:
        raise UserError(f"{source.key}: no right to read '{file}'") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, as when there is no room for `target`
        raise UserError(
            f"{source.key}: '{file}' is not a well-formed CSV file ({first_line(error)}); mend the file"
        ) from None
    return target
