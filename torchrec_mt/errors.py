"""The error a user can act on, and how a program ends on it. Everything else is a bug and keeps its traceback.

Every program ends with `if __name__ == "__main__": run_program(main)`; `torchrec-mt PROGRAM` goes through
`exit_code_of` too, so both ways give the same messages and exit codes:

    0 done    1 the check or the run failed    2 mend your input    3 the tables do not fit
    130 interrupted    141 nobody reads stdout
"""

import errno
import os
import select
import signal
import sys
from collections.abc import Callable
from io import UnsupportedOperation
from types import FrameType
from typing import NoReturn

_WHY = {
    errno.ENOSPC: ("no space left on the disk", "free some space or write elsewhere"),
    errno.EDQUOT: ("disk quota exceeded", "free some space or write elsewhere"),
    errno.EFBIG: ("this file would be larger than the limit allows", "raise `ulimit -f`, or write elsewhere"),
    errno.EACCES: ("permission denied", "give yourself the right, or name another path"),
    errno.EPERM: ("operation not permitted", "give yourself the right, or name another path"),
    errno.ENOTDIR: ("a part of this path is a file", "name another path"),
    errno.EEXIST: ("a file lies where a folder is wanted", "move it away, or name another path"),
    errno.EROFS: ("the file system is read-only", "name another path"),
    errno.ENAMETOOLONG: ("this name is too long for the file system", "name another path"),
    errno.ELOOP: ("symbolic links go round in a circle here", "name another path"),
    errno.EISDIR: ("this is a folder, and a file is wanted here", "name another path"),
    errno.EBUSY: ("in use, or a mount point", "name another path"),
}


class UserError(Exception):
    """A mistake in the input or the environment, told in one message: what, where, which value, the remedy.

    Args:
        message: one or two sentences naming file, key or row, the offending value and what to do.
        exit_code: exit status of the program; 2 is "mend your input".
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class CannotWriteError(UserError):
    """A place that takes no more files: no fault of a config, and whatever comes next would fare no better."""


def require(holds: object, key: str, value: object, allowed: str) -> None:
    """Says what is allowed of a setting; for the `__post_init__` of config classes, which `config.py` reports by key.

    Raises:
        ValueError: it does not hold.
    """
    if not holds:
        raise ValueError(f"{key} = {value!r}: must be {allowed}")


def within(config: object, least: float, most: float, *keys: str) -> None:
    """The same for numbers of a config: each named one is a number from `least` to `most`."""
    for key in keys:
        value = getattr(config, key)
        require(least <= value <= most, key, value, f"at least {least:,} and at most {most:,}")


def at_most(config: object, **bounds: float) -> None:
    """The same for numbers whose least value is told elsewhere, by key; None passes."""
    for key, most in bounds.items():
        value = getattr(config, key)
        require(value is None or value <= most, key, value, f"at most {most:,}")


def first_line(error: Exception) -> str:
    """What a library says of its error, short enough for a message."""
    return str(error).strip().split("\n", 1)[0][:300]


def run_program(main: Callable[[list[str] | None], int]) -> NoReturn:
    """Runs a program on the command line's arguments and exits with its code."""

    def heard() -> int:
        raise_on_interrupt()
        return main(None)

    sys.exit(exit_code_of(heard))


def end_on_interrupt() -> None:
    """Ctrl-C ends the process at once, until `raise_on_interrupt`: for imports, which have nothing to clean up.

    A KeyboardInterrupt in the middle of an import is a traceback, or is taken for a broken package. Does nothing where
    interrupts are ignored or somebody else handles them.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_now)


def raise_on_interrupt() -> None:
    """After `end_on_interrupt`: Ctrl-C raises KeyboardInterrupt again, so that what was begun is cleaned up."""
    if signal.getsignal(signal.SIGINT) is _end_now:
        signal.signal(signal.SIGINT, _raise)


def _end_now(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _ignore_interrupts() -> None:
    """All is said and done, the interpreter only tidies up; a second Ctrl-C has nothing to end any more."""
    if signal.getsignal(signal.SIGINT) in (_end_now, _raise):
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def exit_code_of(program: Callable[[], int]) -> int:
    """Runs a program; what a user or the machine did wrong becomes one message on stderr and an exit code.

    Raises:
        SystemExit: as the program's argument parser raises it.
        Exception: whatever is a bug, unchanged.
    """
    try:
        code = program()
        sys.stdout.flush()  # here, where a full disk or a closed pipe still finds its message
        _ignore_interrupts()
    except UserError as error:
        return _end(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except OSError as error:
        if error.errno == errno.EPIPE and _reader_is_gone():
            _silence_stdout()
            return 141
        if error.errno not in _WHY:
            raise
        why, remedy = _WHY[error.errno]
        _silence_stdout_if_it_is_full()
        return _end(f"error: {_name(error)}: {why}: {remedy}", 2)
    return code


def _end(message: str, code: int) -> int:
    _ignore_interrupts()
    print(message, file=sys.stderr)
    return code


def _name(error: OSError) -> str:
    """The file(s) of a system error. A failing write() does not say which: then the text says as much as there is."""
    names = [os.fspath(name) for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    return " -> ".join(f"'{name}'" for name in names) or f"writing, from '{os.getcwd()}' ({error})"


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads: another broken pipe (a worker's) is no reason to be quiet."""
    try:
        descriptor = sys.stdout.fileno()
    except (UnsupportedOperation, ValueError):
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _silence_stdout_if_it_is_full() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _silence_stdout()


def _silence_stdout() -> None:
    """Sends what is still buffered nowhere: the interpreter's own flush at exit would complain again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
