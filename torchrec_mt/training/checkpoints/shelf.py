"""The checkpoints that lie in a folder: which there are, where a new one is written, and which go. Rank 0 only.

Whatever moment this dies at, the checkpoints that counted before still do, or the new one does. A local checkpoint is
written aside and renamed; where there are no renames it is written in its place, and counts once its commit file is
there. One that takes the place of an earlier one of its step moves in beside it: names of files hold the attempt, and
the commit file is replaced at once.
"""

from dataclasses import dataclass

from torchrec_mt.errors import UserError
from torchrec_mt.storage import StorageError
from torchrec_mt.training.checkpoints.commit import (
    COMMIT,
    Commit,
    DamagedCheckpointError,
    folder_of,
    read_commit,
    step_of,
)
from torchrec_mt.training.checkpoints.files import Files

_PARTIAL = ".partial-"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A folder with a commit file: what that says, or why it says nothing.

    Args:
        damaged: `problem` is damage, rather than another version's format.
    """

    folder: str
    commit: Commit | None
    problem: str = ""
    damaged: bool = False

    @property
    def sequence(self) -> int:
        """Its place among all; nobody knows that of a damaged one."""
        return self.commit.sequence if self.commit else 0


class Shelf:
    """The folder of checkpoints.

    Args:
        keep: how many of the newest stay, beside the newest of each mark.
    """

    def __init__(self, files: Files, keep: int) -> None:
        self._files = files
        self._keep = keep
        self._refused: set[str] = set()

    def entries(self) -> list[Entry]:
        """All checkpoints, the unreadable first (they may be the newest), then from the newest to the oldest."""
        found = [self._entry(name) for name in self._files.names() if step_of(name) is not None]
        known = sorted((entry for entry in found if entry and entry.commit), key=lambda entry: -entry.sequence)
        return [entry for entry in reversed(found) if entry and not entry.commit] + known

    def _entry(self, folder: str) -> Entry | None:
        if not self._files.exists(f"{folder}/{COMMIT}"):
            return None
        try:
            return Entry(folder=folder, commit=read_commit(self._files, folder))
        except StorageError:  # says nothing about the checkpoint
            raise
        except UserError as error:
            damaged = isinstance(error, DamagedCheckpointError)
            return Entry(folder=folder, commit=None, problem=str(error), damaged=damaged)

    def refuse(self, folder: str) -> None:
        """Says that a load found this one damaged: it is none of those that `prune` keeps."""
        self._refused.add(folder)

    def next_sequence(self) -> int:
        """For a checkpoint that is newer than all."""
        return 1 + max((entry.sequence for entry in self.entries()), default=0)

    def begin(self, step: int, attempt: str) -> str:
        """Removes what dead attempts left, and makes the folder to write a new checkpoint into."""
        self._remove_leftovers()
        folder = f".{folder_of(step)}{_PARTIAL}{attempt}" if self._files.is_local else folder_of(step)
        self._files.make_folder(folder)
        return folder

    def _remove_leftovers(self) -> None:
        for name in self._files.names():
            if name.startswith(".step-") and _PARTIAL in name:
                self._files.remove_folder(name)
            elif step_of(name) is not None:
                entry = self._entry(name)
                if entry is None:
                    self._files.remove_folder(name)
                elif entry.commit:
                    self._remove_strangers(name, entry.commit)

    def _remove_strangers(self, folder: str, commit: Commit) -> None:
        for file in self._files.names(folder):
            if file != COMMIT and file not in commit.files:
                self._files.remove_file(f"{folder}/{file}")

    def publish(self, written: str, commit: Commit) -> None:
        """Makes what was written into a folder of `begin` count."""
        files, place = self._files, folder_of(commit.step)
        files.write(f"{written}/{COMMIT}", [commit.dumps()])
        files.sync(written)
        if written != place:
            if files.exists(place):
                self._move_in(written, place, commit)
            else:
                files.rename(written, place)
            files.sync()
        self._remove_strangers(place, commit)
        self._refused.discard(place)

    def _move_in(self, written: str, place: str, commit: Commit) -> None:
        for file in commit.files:
            self._files.rename(f"{written}/{file}", f"{place}/{file}")
        self._files.sync(place)
        self._files.rename(f"{written}/{COMMIT}", f"{place}/{COMMIT}")
        self._files.sync(place)
        self._files.remove_folder(written)

    def abandon(self, written: str) -> None:
        """Frees the room of an attempt that failed; what cannot be removed now is left for the next one."""
        try:
            if written.startswith("."):
                self._files.remove_folder(written)
        except OSError:
            return

    def prune(self) -> None:
        """Removes all but the newest, the newest of each mark, and those of another version's format.

        Called when a checkpoint was just published: that one is the newest, and whole.
        """
        entries = self.entries()
        known = [entry for entry in entries if entry.commit and entry.folder not in self._refused]
        kept = {entry.folder for entry in known[: self._keep]}
        marked: set[str] = set()
        for entry in known:
            new = set(entry.commit.marks if entry.commit else ()) - marked
            if new:
                kept.add(entry.folder)
                marked |= new
        for entry in reversed(entries):
            if entry.folder not in kept and (entry.commit or entry.damaged):
                self._remove(entry.folder)
        self._files.sync()

    def clear(self) -> None:
        """Removes all checkpoints, the oldest first."""
        for entry in reversed(self.entries()):
            self._remove(entry.folder)
        self._remove_leftovers()

    def _remove(self, folder: str) -> None:
        self._files.remove_file(f"{folder}/{COMMIT}")  # first: from here on it does not count
        self._files.sync(folder)
        self._files.remove_folder(folder)
