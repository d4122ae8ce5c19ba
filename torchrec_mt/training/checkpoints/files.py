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

from fsspec.implementations.local import LocalFileSystem

from torchrec_mt.errors import first_line
from torchrec_mt.storage import explained, file_system, is_url, lacks_bucket, whole

Bytes = bytes | memoryview


class Files:
    """Files of one folder, named by their path in it.

    Args:
        root: a local path, or a URL of fsspec.

    Raises:
        UserError: a URL of a file system that is not known or not installed.
    """

    def __init__(self, root: str | Path) -> None:
        self._url = str(root).rstrip("/") if is_url(root) else ""
        self._fs, self._root = file_system(self._url) if self._url else (LocalFileSystem(), str(Path(root).absolute()))
        self.is_local = isinstance(self._fs, LocalFileSystem)

    def where(self, name: str = "") -> str:
        """The whole path or URL, for messages."""
        return f"{self._url or self._root}/{name}".rstrip("/")

    def _path(self, name: str = "") -> str:
        """The same for the file system."""
        return f"{self._root}/{name}".rstrip("/")

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Around what may ask a storage.

        Raises:
            StorageError: it refuses, or does not answer.
            FileNotFoundError: there is no such file.
        """
        with explained(self.where(name)):
            try:
                yield
            except FileNotFoundError as error:
                if self.is_local or lacks_bucket(error):
                    raise
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.where(name)) from None

    def free_bytes(self) -> int | None:
        """Room on the disk; None where nobody can tell."""
        place = Path(self._path())
        while self.is_local and not place.exists() and place != place.parent:
            place = place.parent
        return shutil.disk_usage(place).free if self.is_local else None

    def names(self, folder: str = "") -> list[str]:
        """What lies in a folder, sorted; nothing where there is no such folder."""
        self._fs.invalidate_cache()
        try:
            with self._asking(folder):
                found = self._fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted({str(path).rstrip("/").rsplit("/", 1)[-1] for path in found})

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        self._fs.invalidate_cache()
        with self._asking(name):
            return int(self._fs.size(self._path(name)))

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        self._fs.invalidate_cache()
        with self._asking(name):
            return bool(self._fs.exists(self._path(name)))

    def make_folder(self, name: str) -> None:
        """Makes it, and the folders above it."""
        if self.is_local:
            self._fs.makedirs(self._path(name), exist_ok=True)

    def write(self, name: str, parts: Iterable[Bytes]) -> None:
        """A file of these parts one after the other; on the disk when this returns.

        Raises:
            OSError: naming the file.
        """
        path = self._path(name)
        try:
            with self._asking(name), self._fs.open(path, "wb") as file:
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
        with self._asking(name):
            return bytes(whole(lambda: self._fs.cat_file(self._path(name))))

    @contextmanager
    def open(self, name: str) -> Iterator[IO[Any]]:
        """A file to `read_into` from."""
        with self._asking(name), self._fs.open(self._path(name), "rb") as file:
            yield file

    def sync(self, folder: str = "") -> None:
        """Makes what was renamed, made or removed in a folder outlive a power cut."""
        if not self.is_local:
            return
        descriptor = os.open(self._path(folder), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        """Local disks only: at once, over a file that has the new name."""
        os.replace(self._path(old), self._path(new))

    def remove_file(self, name: str) -> None:
        """A file that exists."""
        with self._asking(name):
            self._fs.rm_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """With all that is in it."""
        if self.is_local:
            shutil.rmtree(self._path(name))
        elif self.exists(name):  # the folder of an object store ends with its last object
            with self._asking(name):
                self._fs.rm(self._path(name), recursive=True)


def read_into(file: IO[Any], offset: int, target: memoryview) -> bool:
    """Fills `target` from a place of the file; whether the file reached so far."""
    return whole(lambda: _read_once(file, offset, target))


def _read_once(file: IO[Any], offset: int, target: memoryview) -> bool:
    file.seek(offset)
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            return False
        done += count
    return True
