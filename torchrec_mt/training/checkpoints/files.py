"""The folder of checkpoints, on a local disk or in any file system that fsspec knows (s3://bucket/run).

On a local disk files and folders are synced, and renames are atomic; an object store has neither, and needs neither: an
object is there whole once its file is closed.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from torchrec_mt.errors import UserError, first_line

Bytes = bytes | memoryview


class Files:
    """Files of one folder, named by their path in it.

    Args:
        root: a local path, or a URL of fsspec.

    Raises:
        UserError: a URL of a file system that is not known or not installed.
    """

    def __init__(self, root: str | Path) -> None:
        try:
            self._fs, self._root = url_to_fs(str(root))
        except (ImportError, ValueError) as error:
            raise UserError(
                f"checkpoints cannot go to '{root}' ({first_line(error)}): install what fsspec needs for it, or name "
                "a local folder"
            ) from None
        self.is_local = isinstance(self._fs, LocalFileSystem)

    def where(self, name: str = "") -> str:
        """The whole path, for messages and for the file system."""
        return f"{self._root.rstrip('/')}/{name}".rstrip("/")

    def free_bytes(self) -> int | None:
        """Room on the disk; None where nobody can tell."""
        place = Path(self.where())
        while self.is_local and not place.exists() and place != place.parent:
            place = place.parent
        return shutil.disk_usage(place).free if self.is_local else None

    def names(self, folder: str = "") -> list[str]:
        """What lies in a folder, sorted; nothing where there is no such folder."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self.where(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted({str(path).rstrip("/").rsplit("/", 1)[-1] for path in found})

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        self._fs.invalidate_cache()
        return int(self._fs.size(self.where(name)))

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        self._fs.invalidate_cache()
        return bool(self._fs.exists(self.where(name)))

    def make_folder(self, name: str) -> None:
        """Makes it, and the folders above it."""
        if self.is_local:
            self._fs.makedirs(self.where(name), exist_ok=True)

    def write(self, name: str, parts: Iterable[Bytes]) -> None:
        """A file of these parts one after the other; on the disk when this returns.

        Raises:
            OSError: naming the file.
        """
        path = self.where(name)
        try:
            with self._fs.open(path, "wb") as file:
                for part in parts:
                    file.write(part)
                if self.is_local:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:  # a failing write() names no file
            raise OSError(error.errno or errno.EIO, error.strerror or first_line(error), path) from error

    def read(self, name: str) -> bytes:
        """All of a small file."""
        self._fs.invalidate_cache()
        return bytes(self._fs.cat_file(self.where(name)))

    @contextmanager
    def open(self, name: str) -> Iterator[IO[Any]]:
        """A file to `read_into` from."""
        with self._fs.open(self.where(name), "rb") as file:
            yield file

    def sync(self, folder: str = "") -> None:
        """Makes what was renamed, made or removed in a folder outlive a power cut."""
        if not self.is_local:
            return
        descriptor = os.open(self.where(folder), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        """Local disks only: at once, over a file that has the new name."""
        os.replace(self.where(old), self.where(new))

    def remove_file(self, name: str) -> None:
        """A file that exists."""
        self._fs.rm_file(self.where(name))

    def remove_folder(self, name: str) -> None:
        """With all that is in it."""
        if self.is_local:
            shutil.rmtree(self.where(name))
        elif self.exists(name):  # the folder of an object store ends with its last object
            self._fs.rm(self.where(name), recursive=True)


def read_into(file: IO[Any], offset: int, target: memoryview) -> bool:
    """Fills `target` from a place of the file; whether the file reached so far."""
    file.seek(offset)
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True
