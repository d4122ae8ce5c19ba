"""Fetch and push: a local copy and a URL are brought into step, only what differs travels.

A folder counts as whole by its mark, the file that says what it is (manifest.json, config.json). Where files are
replaced, the mark is removed first and written last, and `MARK.unfinished` lies there meanwhile: a reader finds all of
the folder or is told that it is being written. The copy is replaced as a whole too.
"""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from torchrec_mt.errors import UserError
from torchrec_mt.storage.client import explained, file_system, whole
from torchrec_mt.storage.listing import Remote, in_parts, listed, local_files, parents
from torchrec_mt.storage.place import Known, Place

T = TypeVar("T")
_AT_ONCE = 8
"""Files or blocks that travel side by side."""
_BLOCK = 32 << 20
"""Bytes of a file that are fetched by one request: what breaks off is asked for again in such pieces."""
_LARGE = 100_000_000
"""Bytes from which on a transfer is told of."""
_AGAIN = 5
"""How often a folder that changes while it is fetched is begun anew."""


def fetch(url: str, *, mark: str | None = None, parts: Sequence[str] | None = None) -> Path:
    """A local copy of the folder or file at a URL; what is there already is not fetched again.

    Of several processes of a machine one fetches and the others wait. The copy is in use until this process ends.

    Args:
        mark: the file without which the folder is not whole.
        parts: only these files, folders and globs in it; what the copy holds outside of them stays as it is.

    Raises:
        UserError: nothing whole there, no right to it, no answer; or it has changed while another process on this
            machine uses the copy.
    """
    place = Place(url)
    with explained(url):
        if mark is None and parts is None and _is_file(place):
            parent, _, name = place.url.rpartition("/")
            return fetch(parent, parts=[name]) / name
        with place.locked():
            found = _look(place, parts)
            if mark is not None and mark not in found:
                raise UserError(_not_whole(place, mark))
            if not found:
                raise UserError(f"'{url}': there is nothing: was it written, or is the name mistyped?")
            _bring(place, parts, found)
    return place.copy


def fetch_output(url: str, *, mark: str, parts: Sequence[str] | None = None) -> Path:
    """The local folder in which to write what is `push`ed to the URL later: a copy of what lies there, if it is ours.

    Where a push was cut short the copy stays as it is: it may be the only whole one.

    Raises:
        UserError: something else lies there.
    """
    place = Place(url)
    with explained(url), place.locked():
        found = _look(place, None)
        if found and not {mark, _unfinished(mark)} & found.keys():
            some = ", ".join(list(found)[:3])
            raise UserError(f"'{url}' holds something else (no {mark}, but {some}): nothing was touched, give another")
        if mark in found or not found:
            _bring(place, parts, {name: remote for name, remote in found.items() if in_parts(name, parts)})
        else:
            place.take()
            place.use()
    return place.copy


def push(folder: Path, url: str, *, mark: str | None = None, parts: Sequence[str] | None = None) -> None:
    """Writes to the URL what differs in its local copy, and removes there what was removed here since the last time.

    Args:
        folder: the copy, as `fetch_output` or `fetch` gave it.
        mark: the file without which the folder is not whole; without one, every file stands for itself.
        parts: only these files and folders of it.

    Raises:
        UserError: no right to write there, no answer; it names the copy.
    """
    place = Place(url)
    try:
        with explained(url), place.locked():
            _push(place, folder, mark, parts)
    except UserError as error:
        raise UserError(f"{error} (all of it lies in '{folder}': copy it from there, or run again)") from error


def _push(place: Place, folder: Path, mark: str | None, parts: Sequence[str] | None) -> None:
    fs, root = file_system(place.url)
    found, known, here = _look(place, parts), place.read_record(), local_files(folder, parts)
    changed = [n for n, file in here.items() if n not in found or not _agrees(file, known.get(n), found[n])]
    gone = [name for name in known if in_parts(name, parts) and name in found and name not in here]
    stats = {name: here[name].stat() for name in here}
    if changed or gone:
        if mark is not None:
            assert mark in here, f"{mark} is missing in {folder}"
            writer = {"host": platform.node(), "process": os.getpid(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            fs.pipe_file(f"{root}/{_unfinished(mark)}", json.dumps(writer).encode())
            if mark in found:
                fs.rm_file(f"{root}/{mark}")
        _tell("writing", place, changed, sum(stats[name].st_size for name in changed))
        _each([n for n in changed if n != mark], lambda name: _put(place, name, here[name]))
        _each(gone, lambda name: file_system(place.url)[0].rm_file(f"{root}/{name}"))
        if mark is not None:
            _put(place, mark, here[mark])
        found = _look(place, parts)
    if mark is not None and fs.exists(f"{root}/{_unfinished(mark)}"):
        fs.rm_file(f"{root}/{_unfinished(mark)}")
    kept = {name: one for name, one in known.items() if not in_parts(name, parts)}
    for name, stat in stats.items():
        if name in found and found[name].size == stat.st_size:  # else it has grown since
            kept[name] = Known(stat.st_size, found[name].tag, stat.st_mtime_ns)
    place.write_record(kept)


def _tell(what: str, place: Place, names: Sized, size: int) -> None:
    """A line where it will take a while."""
    if size >= _LARGE:
        print(f"storage: {what} {len(names)} files, {size / 1e9:.1f} GB: '{place.url}'", file=sys.stderr, flush=True)


def _look(place: Place, parts: Sequence[str] | None) -> dict[str, Remote]:
    fs, root = file_system(place.url)
    try:
        return listed(fs, root, parts)
    except FileNotFoundError as error:
        if error.__cause__ is not None:  # the server said so: there is no such bucket
            raise
        return {}


def _is_file(place: Place) -> bool:
    fs, root = file_system(place.url)
    return bool(fs.isfile(root))


def _unfinished(mark: str) -> str:
    return f"{mark}.unfinished"


def _not_whole(place: Place, mark: str) -> str:
    fs, root = file_system(place.url)
    if fs.exists(f"{root}/{_unfinished(mark)}"):
        return (
            f"'{place.url}' is being written, or its writer was stopped (no {mark} in it yet): try again when it is "
            "done, or write it again"
        )
    return f"'{place.url}' holds no {mark}: was it written by `torchrec-mt`, or is the name mistyped?"


def _bring(place: Place, parts: Sequence[str] | None, found: dict[str, Remote]) -> None:
    """Makes the copy hold what was found, and marks it as used by this process."""
    known, alone = place.read_record(), place.take()
    try:
        missing = _missing(place.copy, known, found)
        surplus = [name for name in _present(place) if in_parts(name, parts) and name not in found]
        if missing and not alone:
            raise UserError(
                f"'{place.url}' has changed while another program on this machine uses its local copy, '{place.copy}': "
                "wait until that has ended"
            )
        if missing or (surplus and alone):
            _replace(place, parts, found, known)
    finally:
        place.use()


def _present(place: Place) -> dict[str, Path]:
    return local_files(place.copy, None) if place.copy.is_dir() else {}


def _missing(copy: Path, known: Mapping[str, Known], found: Mapping[str, Remote]) -> list[str]:
    """Names whose copy is not what the storage has."""
    return [name for name, remote in found.items() if not _agrees(copy / name, known.get(name), remote)]


def _agrees(file: Path, known: Known | None, remote: Remote) -> bool:
    if known is None or (known.size, known.tag) != (remote.size, remote.tag) or not file.is_file():
        return False
    stat = file.stat()
    return (stat.st_size, stat.st_mtime_ns) == (known.size, known.mtime_ns)


def _replace(place: Place, parts: Sequence[str] | None, found: dict[str, Remote], known: Mapping[str, Known]) -> None:
    """A new copy beside the old one, of links to what is right and of what is fetched; then it takes its place."""
    aside = place.copy.with_name(f".{place.copy.name}.partial-fetch")
    old = _present(place)
    outside = [name for name in old if not in_parts(name, parts) and name not in found]
    try:
        for _ in range(_AGAIN):
            shutil.rmtree(aside, ignore_errors=True)
            missing = _missing(place.copy, known, found)
            for folder in parents([*found, *outside]):
                (aside / folder).mkdir(parents=True, exist_ok=True)
            for name in [*outside, *(found.keys() - missing)]:
                os.link(old[name], aside / name)
            failure = _get(place, aside, {name: found[name] for name in missing})
            before, found = found, _look(place, parts)
            if found == before:
                if failure is not None:
                    raise failure
                break
        else:
            raise UserError(f"'{place.url}' changes all the time while it is fetched: wait until it is written")
        aside.mkdir(parents=True, exist_ok=True)
        _swap(aside, place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    fresh = {n: Known(one.size, one.tag, (place.copy / n).stat().st_mtime_ns) for n, one in found.items()}
    place.write_record({name: one for name, one in known.items() if not in_parts(name, parts)} | fresh)


def _swap(aside: Path, place: Place) -> None:
    old = place.copy.with_name(f".{place.copy.name}.partial-old")
    shutil.rmtree(old, ignore_errors=True)
    if place.copy.exists():
        os.rename(place.copy, old)
    os.rename(aside, place.copy)
    shutil.rmtree(old, ignore_errors=True)


def _get(place: Place, aside: Path, wanted: Mapping[str, Remote]) -> UserError | None:
    """Fetches files, with the time at which each was written to the storage: it is the same on every machine.

    Returns what went wrong, which may be because they are being replaced.
    """

    _tell("fetching", place, wanted, sum(remote.size for remote in wanted.values()))

    def get(block: tuple[str, int]) -> None:
        (name, start), (fs, root) = block, file_system(place.url)
        with explained(f"{place.url}/{name}"):
            end = min(start + _BLOCK, wanted[name].size)
            content = whole(lambda: fs.cat_file(f"{root}/{name}", start=start, end=end))
        with (aside / name).open("r+b") as file:
            file.seek(start)
            file.write(content)

    for name in wanted:
        (aside / name).touch()
    try:
        _each([(name, start) for name, remote in wanted.items() for start in range(0, remote.size, _BLOCK)], get)
    except UserError as error:
        return error
    for name, remote in wanted.items():
        if remote.mtime_ns:
            os.utime(aside / name, ns=(remote.mtime_ns, remote.mtime_ns))
    return None


def _put(place: Place, name: str, file: Path) -> None:
    fs, root = file_system(place.url)
    with explained(f"{place.url}/{name}"):
        fs.put_file(str(file), f"{root}/{name}")


def _each(items: Iterable[T], do: Callable[[T], None]) -> None:
    """All of them, several at once; the first failure ends it."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        tasks = [pool.submit(do, item) for item in items]
        try:
            for task in tasks:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
