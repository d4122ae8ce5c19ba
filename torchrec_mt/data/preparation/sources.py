"""Raw files: which ones a `path` means, and their fingerprint. First step of reading; `columns.py` is the next."""

import glob
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fsspec.core import has_magic

from torchrec_mt.data.dataset import FORMAT, declaration_json, prepared_part
from torchrec_mt.errors import UserError
from torchrec_mt.schema import Schema
from torchrec_mt.storage import fetch, is_url

_SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".csv.gz": "csv"}


@dataclass(frozen=True)
class Source:
    """The files behind one `path` of the schema; `key` is that path's key, for messages.

    Args:
        base: the local copy of what `url` names, where the path is a URL.
    """

    key: str
    path: str
    files: tuple[Path, ...]
    kind: str
    base: Path = Path()
    url: str = ""

    def name_of(self, file: Path, raw: Path) -> str:
        """A file as a manifest names it: the same on every machine that reads it by URL or in `raw`."""
        if self.url:
            return f"{self.url}/{file.relative_to(self.base).as_posix()}"
        return str(file.relative_to(raw) if file.is_relative_to(raw) else file)


def find_source(key: str, path: str, raw: Path) -> Source:
    """Resolves a file, glob or folder (relative to `raw`, absolute, or a URL, of which a copy is fetched).

    Raises:
        UserError: nothing there, or files of unknown or mixed kinds.
    """
    url, base, full = _fetched(path.rstrip("/")) if is_url(path) else ("", Path(), raw / path)
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
    return Source(key, path, tuple(files), str(kinds[files[0]]), base, url)


def _fetched(path: str) -> tuple[str, Path, Path]:
    """The folder that a URL names or lies in; the local copy of that folder, and in it of what the URL names."""
    if not has_magic(path):
        full = fetch(path)
        return (path, full, full) if full.is_dir() else (path.rpartition("/")[0], full.parent, full)
    url, _, name = path.rpartition("/")
    while has_magic(url):
        url, _, part = url.rpartition("/")
        name = f"{part}/{name}"
    base = fetch(url, parts=[name])
    return url, base, base / name


def _hidden(relative: Path) -> bool:
    return any(part.startswith((".", "_")) for part in relative.parts)


def _kind(file: Path) -> str | None:
    name = file.name.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def declared_paths(schema: Schema) -> dict[str, str]:
    """Every path of a schema by its key: `entities.E.path`, `tasks.T.pairs.path`, `tasks.T.truth.path`."""
    paths = {f"entities.{name}.path": entity.path for name, entity in schema.entities.items()}
    for name, task in schema.tasks.items():
        paths[f"tasks.{name}.pairs.path"] = task.pairs.path
        if task.truth is not None:
            paths[f"tasks.{name}.truth.path"] = task.truth.path
    return paths


def relative_paths(schema: Schema) -> list[str]:
    """Those paths of a schema that start from the folder of raw tables, each once."""
    return sorted(
        {path for path in declared_paths(schema).values() if not is_url(path) and not Path(path).is_absolute()}
    )


def all_sources(schema: Schema, raw: Path) -> dict[str, Source]:
    """Every source of a schema by the key of its path."""
    return {key: find_source(key, path, raw) for key, path in declared_paths(schema).items()}


def describe_files(sources: Mapping[str, Source], raw: Path) -> dict[str, dict[str, int | str]]:
    """Path (relative to `raw` where it lies inside) or URL -> size and modification time of every file."""
    files = {file: source.name_of(file, raw) for source in sources.values() for file in source.files}
    described: dict[str, dict[str, int | str]] = {}
    for file, name in sorted(files.items()):
        stat = file.stat()
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
