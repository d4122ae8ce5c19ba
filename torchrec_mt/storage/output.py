"""Where a program writes: a local folder as it is, or the local copy of a URL, pushed once there is something in it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from torchrec_mt.errors import UserError
from torchrec_mt.storage.client import is_url
from torchrec_mt.storage.mirror import fetch, fetch_output, push


class Output:
    """A program's output by path or URL.

    Args:
        where: what the user named.
        mark, parts: as in `fetch_output`.
    """

    def __init__(self, where: str, *, mark: str, parts: Sequence[str] | None = None) -> None:
        self.where, self._mark, self._parts = where, mark, parts
        self._copy: Path | None = None

    def folder(self) -> Path:
        """Where to write on this machine. In a job of many ranks only the main one asks.

        Raises:
            UserError: the URL holds something else, or cannot be reached.
        """
        if not is_url(self.where):
            return Path(self.where)
        self._copy = fetch_output(self.where, mark=self._mark, parts=self._parts)
        return self._copy

    def push(self) -> None:
        """Brings the URL into step with the folder, whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        if self._copy is not None:
            push(self._copy, self.where, mark=self._mark, parts=self._parts)

    def update(self) -> None:
        """The same where what is there already goes on: every file stands for itself, and at no time none counts.

        Raises:
            UserError: it cannot be written.
        """
        if self._copy is not None:
            push(self._copy, self.where, parts=self._parts)

    def try_update(self) -> None:
        """`update` in the middle of long work: a failure is only told, the next one makes up for it."""
        try:
            self.update()
        except UserError as error:
            print(f"warning: not written now, but tried again later: {error}", file=sys.stderr, flush=True)


def local_copy(path: str, *, mark: str | None = None, parts: Sequence[str] | None = None) -> str:
    """A path as it is, or the local copy of a URL: for programs, which read both."""
    return str(fetch(path, mark=mark, parts=parts)) if is_url(path) else path


def push_back(path: str, folder: Path, *, parts: Sequence[str], mark: str | None = None) -> None:
    """Pushes what a program wrote into a `local_copy`; nothing to do for a path."""
    if is_url(path):
        push(folder, path, parts=parts, mark=mark)
