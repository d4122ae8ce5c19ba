"""When a training's checkpoints are written, and under which marks they are kept."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torchrec_mt.distributed.table_state import of_tables
from torchrec_mt.errors import within
from torchrec_mt.runs import RunFolder
from torchrec_mt.storage import StorageError
from torchrec_mt.training.checkpoints.files import Files
from torchrec_mt.training.checkpoints.shelf import Shelf
from torchrec_mt.training.checkpoints.store import CheckpointStore
from torchrec_mt.training.early_stop import EarlyStop
from torchrec_mt.training.run_state import Good, RunState

_FOLDER = "checkpoints"
BEST, LAST = "best", "last"
"""Marks of the checkpoints that programs ask for: at the best validation, and at the end."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run, to go on from and to judge.

    Args:
        every: steps between checkpoints beside those at validations, which are always kept; 0 none.
        keep: newest checkpoints that stay. keep_best: best validations whose checkpoints stay, too.
        background: write while training goes on, from a copy of this rank's tables in memory; the next step waits for
            that copy before it updates them.
        folder: where, a path or a URL such as "s3://bucket/run"; empty: RUN/checkpoints.
    """

    every: int = 0
    keep: int = 2
    keep_best: int = 1
    background: bool = True
    folder: str = ""

    def __post_init__(self) -> None:
        within(self, 0, 1_000_000_000, "every")
        within(self, 1, 1_000_000, "keep", "keep_best")


def checkpoints_path(config: CheckpointConfig, run: RunFolder) -> str | Path:
    """Where a run's checkpoints are; those of a run at a URL are there too, its local copy has none."""
    if config.folder:
        return config.folder
    return f"{run.url}/{_FOLDER}" if run.url else run.path / _FOLDER


def has_checkpoint(config: CheckpointConfig, run: RunFolder) -> bool:
    """Whether there is anything to go on from; asked on the main rank."""
    return Shelf(Files(checkpoints_path(config, run)), 1).entries() != []


def remove_checkpoints(config: CheckpointConfig, run: RunFolder) -> None:
    """Makes room for those of a new run where those of the run that it replaces are; asked on the main rank."""
    Shelf(Files(checkpoints_path(config, run)), 1).clear()


def newest_checkpoint(config: CheckpointConfig, run: RunFolder) -> str | None:
    """The path of the newest, as far as commit files tell; asked on any rank, also where others are gone."""
    try:
        files = Files(checkpoints_path(config, run))
        folders = [entry.folder for entry in Shelf(files, 1).entries() if entry.commit]
    except (OSError, StorageError):
        return None
    return files.where(folders[0]) if folders else None


class Keeper:
    """Writes the checkpoints of a training. Every method is called on every rank.

    Args:
        store: of the run folder as it lies now. good: what has the marks of good validations so far.
        before: called before every checkpoint.
        moved: the store of the run folder once it has taken its place, called after the first checkpoint; None where it
            lies there already.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        state: RunState,
        store: CheckpointStore,
        *,
        good: Iterable[Good] = (),
        before: Callable[[], None] = lambda: None,
        moved: Callable[[], CheckpointStore] | None = None,
    ) -> None:
        self._config, self._state, self._store, self._before, self._moved = config, state, store, before, moved
        self._good = list(good)

    def is_due(self, step: int) -> bool:
        """Whether `every` asks for one after this step."""
        return self._config.every > 0 and step % self._config.every == 0

    def save(self, step: int, stop: EarlyStop, *, value: float | None = None, last: bool = False) -> None:
        """Writes a checkpoint.

        Args:
            value: of the validation at this step, if there was one. last: training ends here, and waits for it.

        Raises:
            UserError: on every rank; it cannot be written, or the one before, in the background, could not.
        """
        self._before()
        tensors = self._state.tensors()
        marks = self._marks_of(step, value) if value is not None else []
        if step == stop.best_step:
            marks.append(BEST)
        if last:
            marks.append(LAST)
        self._store.save(
            step,
            tensors,
            state=self._state.numbers(step, stop, self._good),
            rank_state=self._state.of_rank(),
            marks=tuple(marks),
            background=self._config.background and not last and self._moved is None,
            late=of_tables(tensors),
        )
        if self._moved:
            self._store.close()
            self._store, self._moved = self._moved(), None
            self._reserve()

    def before_update(self) -> None:
        """Waits until tables may change, of which the last save may not have its copy yet.

        Raises:
            Exception: what the copy ended with.
        """
        self._store.finish_copy()

    def _marks_of(self, step: int, value: float) -> list[str]:
        """The mark of one of the best validations, the very best included: a free one, or that of the worst."""
        if len(self._good) < self._config.keep_best:
            mark = f"good-{len(self._good) + 1}"
        else:
            worst = min(self._good, key=lambda good: (good.value, -good.step))
            if value <= worst.value:
                return []
            self._good.remove(worst)
            mark = worst.mark
        self._good.append(Good(value, step, mark))
        return [mark]

    def _reserve(self) -> None:
        if self._config.background and not self._moved:
            self._store.reserve(self._state.tensors())

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Around the training: waits at its end for what is being written, also where it fails.

        Raises:
            UserError: on every rank; it cannot be written.
        """
        self._reserve()
        try:
            yield
        except BaseException:
            with suppress(Exception):  # what ended the training is what to tell
                self._store.close()
            raise
        self._store.close()
