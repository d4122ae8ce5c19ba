"""A folder takes the place of another: at no moment is the place empty, where the system can exchange two names."""

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNABLE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def take_place(new: Path, place: Path, aside: Path) -> Path:
    """Renames `new` to `place`; returns where what was there is now, if anything was.

    Args:
        aside: for that, where nothing can be exchanged (NFS). Killed in between, both folders are there and the place
            is empty.

    Raises:
        OSError: all is as it was.
    """
    if place.exists() and _exchange(new, place):
        return new
    if place.exists():
        os.rename(place, aside)
    try:
        os.rename(new, place)
    except OSError:
        if aside.exists():
            os.rename(aside, place)
        raise
    return aside


def _exchange(one: Path, other: Path) -> bool:
    """Whether they have changed places; no where the system or the file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2  # Linux; Python's os lacks it
    except AttributeError:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    failure = ctypes.get_errno()
    if failure in _UNABLE:
        return False
    raise OSError(failure, os.strerror(failure), str(one), None, str(other))
