"""What lies at a URL: names below it, with size, tag and time. A name is a path relative to the URL, with slashes."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import has_magic
from fsspec.utils import glob_translate

from torchrec_mt.errors import UserError

_TAGS = ("ETag", "etag", "md5Hash", "content_settings", "LastModified", "last_modified", "mtime", "created")
"""Where file systems put what changes with a file's content, best first."""
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class Remote:
    """A file at a URL: bytes, a tag that changes with its content, time of last change in ns (0 where unknown)."""

    size: int
    tag: str
    mtime_ns: int


def listed(fs: AbstractFileSystem, root: str, parts: Sequence[str] | None) -> dict[str, Remote]:
    """Files below `root` in order of their names.

    Args:
        parts: only these files, folders and globs, relative to `root`; None: all.

    Raises:
        UserError: a name that leads out of the folder.
    """
    found: dict[str, Any] = {}
    fs.invalidate_cache()
    for place in [root] if parts is None else [f"{root}/{part}" for part in parts]:
        look = fs.glob if parts is not None and has_magic(place) else fs.find
        found |= look(place, detail=True)
    files = ((_relative(root, path), about) for path, about in found.items() if about["type"] == "file")
    return {name: _remote(about) for name, about in sorted(files) if name}


def in_parts(name: str, parts: Sequence[str] | None) -> bool:
    """Whether a name is one of `parts` (files, folders, globs) or lies in one."""
    return parts is None or any(
        re.match(glob_translate(part), name) if has_magic(part) else name == part or name.startswith(f"{part}/")
        for part in parts
    )


def local_files(folder: Path, parts: Sequence[str] | None) -> dict[str, Path]:
    """Files of a local folder by name, but what programs write aside there."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if in_parts(name, parts) and not _is_aside(name)}


def parents(names: Iterable[str]) -> Iterator[str]:
    """The folder of every name, each once; "" is the root."""
    yield from dict.fromkeys(name.rpartition("/")[0] for name in names)


def _is_aside(name: str) -> bool:
    return any(part.startswith(".") and (".partial" in part or part.endswith(".old")) for part in name.split("/"))


def _relative(root: str, path: str) -> str:
    """The name of a path below `root`; "" for what stands for a folder."""
    name = path.removeprefix(root).removeprefix("/")
    if path == root or name.endswith("/") or not name:
        return ""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise UserError(f"'{root}' holds {name!r}, which is no name of a file on this machine: rename or remove it")
    return name


def _remote(about: Mapping[str, Any]) -> Remote:
    tag = next((str(about[key]) for key in _TAGS if about.get(key) is not None), "")
    time = next((about[key] for key in _TIMES if about.get(key) is not None), 0)
    seconds = time.timestamp() if isinstance(time, datetime) else float(time) if isinstance(time, int | float) else 0.0
    return Remote(size=int(about["size"] or 0), tag=tag.strip('"'), mtime_ns=round(seconds * 1000) * 1_000_000)
