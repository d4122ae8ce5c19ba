"""Raw files: which ones a `path` means, and their fingerprint. First step of reading; `columns.py` is the next."""

import glob
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torchrec_mt.data.dataset import FORMAT, declaration_json, prepared_part
from torchrec_mt.errors import UserError
from torchrec_mt.schema import Schema

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
    content = {
        "format": FORMAT,
        "name": name,
        "schema": prepared_part(declaration_json(schema)),
        "files": files,
        "extra": extra,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
