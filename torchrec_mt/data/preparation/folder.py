"""The output folder appears whole or not at all: written aside under a hidden name, then renamed.

The hidden folder is locked while its writer lives, so a later run can tell a killed run's leftovers from a live one's.
"""

import errno
import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec_mt.data.dataset import MANIFEST, Manifest, PreparedDataset, manifest_to_json
from torchrec_mt.errors import UserError

SCRATCH = ".scratch"


@contextmanager
def partial_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output`, removed at the end unless `finish` has renamed it.

    Raises:
        UserError: no right to write there, or no room on the disk (also while the block runs).
    """
    folder = output.parent / f"{_prefix(output)}{uuid.uuid4().hex[:12]}"
    try:
        _make(folder, output)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / SCRATCH).mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        explained = _explained(error, output)
        if explained is None:
            raise
        raise explained from error


def _make(folder: Path, output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        raise _explained(error, output) or UserError(
            f"dataset.path = '{output}' cannot be made ({error}): choose another folder"
        ) from error


def _explained(error: OSError, output: Path) -> UserError | None:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return UserError(
                f"no room on the disk for dataset.path = '{output}' ({error}): free some or choose another folder"
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return UserError(f"no right to write dataset.path = '{output}' ({error}): choose another output folder")
        case errno.ENOTDIR | errno.EEXIST:
            return UserError(f"dataset.path = '{output}' cannot be a folder ({error}): choose another output folder")
    return None


def require_room(folder: Path, need: int) -> None:
    """Before writing through a memory map: a full disk would kill the process there, and raise no error.

    Args:
        folder: where to write; may not exist yet, its dataset's folder does.
        need: bytes.

    Raises:
        OSError: no room (ENOSPC).
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if shutil.disk_usage(there).free < need + (1 << 16):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(there))


def _prefix(output: Path) -> str:
    return f".{output.name}.partial-"


def finish(folder: Path, output: Path, manifest: Manifest) -> PreparedDataset:
    """Writes the manifest, puts the folder in place of an older dataset, and clears leftovers of killed runs."""
    shutil.rmtree(folder / SCRATCH)
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        file.write(manifest_to_json(manifest))
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)
    older = output.parent / f"{_prefix(output)}{uuid.uuid4().hex[:12]}"
    replaced = output.exists()
    if replaced:
        os.rename(output, older)
    try:
        os.rename(folder, output)
    except OSError:
        if replaced:
            os.rename(older, output)
        raise
    _sync_folder(output.parent)
    clear_leftovers(output)
    return PreparedDataset.open(output)


def clear_leftovers(output: Path) -> None:
    """Removes hidden folders of killed runs beside `output`; those of running ones are locked and stay."""
    for leftover in output.parent.glob(f"{glob.escape(_prefix(output))}*"):
        if _abandoned(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _abandoned(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
