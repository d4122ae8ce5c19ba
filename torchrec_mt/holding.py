"""Who trains a run: one job at a time, by a lock on a file in its folder, which ends with the process, however it ends.

RUN/training.lock    held while a job trains the run; says which process of which host does, and is removed at the end
"""

import errno
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec_mt.errors import UserError

LOCK = "training.lock"
PATIENCE_S = 60.0
"""How long a launcher's next try of a job waits for a rank of the last one that has not ended yet."""
_MOMENT_S = 2.0
"""How long to wait for one that says nothing of itself: it has just ended, or just begun."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def job() -> str:
    """The launcher's name for the job that this process belongs to: the same in all its tries; empty without one."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if name == "none" else name  # torchrun's default, which all jobs share


class Hold:
    """Holds a run until `release`, or until this process ends. Only one process of a job asks.

    Args:
        folder: the run's, which exists. where: what a user calls the run by.

    Raises:
        UserError: another process holds it; one of the same job is waited for first.
    """

    def __init__(self, folder: Path, where: str) -> None:
        self._file = folder / LOCK
        began, told_of = time.monotonic(), False
        while (descriptor := _locked_if_it_can_be(self._file)) is None:
            holder = _holder(self._file)
            if time.monotonic() > began + _patience_with(holder):
                raise UserError(
                    f"'{where}' is being trained by {_told(holder)}: wait until that has ended, or end it, or give "
                    "another --output"
                )
            if holder and not told_of:
                print(f"'{where}' is still held by {_told(holder)}: waiting for its end", file=sys.stderr, flush=True)
                told_of = True
            time.sleep(0.2)
        self._descriptor = descriptor
        told = {
            "host": platform.node(),
            "process": os.getpid(),
            "job": job(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(told).encode(), 0)

    def moved(self, folder: Path) -> None:
        """The run has another folder now."""
        self._file = folder / LOCK

    def release(self) -> None:
        """Lets others have it."""
        _release(self._descriptor, self._file)


@contextmanager
def held_if_free(file: Path) -> Iterator[bool]:
    """Holds a lock file, in a folder that is there, if no process has it, until the end; says whether it does."""
    descriptor = _locked_if_it_can_be(file)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _release(descriptor, file)


def is_held(folder: Path) -> bool:
    """Whether some process trains the run in a folder right now, or nobody can tell."""
    try:
        descriptor = _locked(folder / LOCK)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return True
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def _locked(file: Path) -> int | None:
    """The open, locked file; None where another process has it.

    Raises:
        OSError: not least where the file system has no locks.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        if _is_of(descriptor, file):
            return descriptor
        os.close(descriptor)  # its last holder has removed it


def _locked_if_it_can_be(file: Path) -> int | None:
    """The same, with a warning where the file system has no locks."""
    try:
        return _locked(file)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    print(f"warning: '{file}': no locks here, so another program that does the same is not noticed", file=sys.stderr)
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _release(descriptor: int, file: Path) -> None:
    if _is_of(descriptor, file):
        file.unlink()
    os.close(descriptor)


def _is_of(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _holder(file: Path) -> dict[str, object]:
    """What the holder says of itself; nothing where it has not done so yet, or has just ended."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _patience_with(holder: dict[str, object]) -> float:
    if not holder:
        return _MOMENT_S
    return PATIENCE_S if job() and holder.get("job") == job() else 0.0


def _told(holder: dict[str, object]) -> str:
    if not holder:
        return "another process"
    of_job = f"job '{holder.get('job')}', " if holder.get("job") else ""
    return f"process {holder.get('process')} on host '{holder.get('host')}' ({of_job}since {holder.get('since')})"
