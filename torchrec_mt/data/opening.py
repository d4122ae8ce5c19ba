"""Opening what programs of ours wrote earlier: a file that is missing or damaged is told with the remedy."""

from collections.abc import Iterator
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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
