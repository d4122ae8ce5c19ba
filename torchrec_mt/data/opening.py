"""Opening what programs of ours wrote earlier: a file that is missing or damaged is told with the remedy."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from torchrec_mt.errors import UserError


@contextmanager
def reading(file: Path, remedy: str) -> Iterator[None]:
    """Wraps the reading of one file (or of the files whose names begin so).

    Args:
        remedy: what a person does about a damaged one: "delete 'shop' and prepare again".

    Raises:
        UserError: the file is missing, cut off or damaged.
        OSError: no right to read it, or the disk failed.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"'{error.filename or file}' is missing: {remedy}") from None
    except (pa.ArrowException, ValueError, KeyError, EOFError) as error:  # no JSON and no UTF-8 are ValueErrors
        raise UserError(f"'{file}' is damaged ({_first_line(error)}): {remedy}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"'{file}' is damaged ({_first_line(error)}): {remedy}") from None  # pyarrow's own


class Mapped:
    """Files that are memory mapped for as long as this lives.

    What is cut off of a mapped file takes the process with it at the next touch (SIGBUS), which no program can tell
    of. So this looks whether they still reach as far as when they were mapped; call it before a batch is read.

    Raises:
        UserError: one is missing, or shorter.
    """

    def __init__(self, files: Iterable[Path], remedy: str) -> None:
        self._files = {file: (file.stat().st_size, remedy) for file in files}

    def add(self, other: "Mapped") -> None:
        """Looks at those of another as well."""
        self._files |= other._files

    def check(self) -> None:
        """Looks at all of them."""
        for file, (size, remedy) in self._files.items():
            with reading(file, remedy):
                found = file.stat().st_size
            if found < size:
                raise UserError(
                    f"'{file}' is damaged ({found:,} of {size:,} bytes are left since it was opened): {remedy}"
                )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
