"""When a training's checkpoints are written, and under which marks they are kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torchrec_mt.errors import within
from torchrec_mt.training.checkpoints.files import Files
from torchrec_mt.training.checkpoints.shelf import Shelf
from torchrec_mt.training.checkpoints.store import CheckpointStore
from torchrec_mt.training.early_stop import EarlyStop
from torchrec_mt.training.run_state import RunState

BEST, LAST = "best", "last"
"""Marks of the checkpoints that programs ask for: at the best validation, and at the end."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept of a run, to go on from and to judge.

    Args:
        every: steps between checkpoints beside those at validations, which are always kept; 0 none.
        keep: newest checkpoints that stay. keep_best: best validations whose checkpoints stay, too.
        background: write while training goes on, from a copy of this rank's tables in memory.
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


def checkpoints_path(config: CheckpointConfig, run_path: Path) -> str | Path:
    """Where a run's checkpoints are."""
    return config.folder or run_path / "checkpoints"


def has_checkpoint(config: CheckpointConfig, run_path: Path) -> bool:
    """Whether there is anything to go on from; asked on the main rank."""
    return Shelf(Files(checkpoints_path(config, run_path)), 1).entries() != []


def newest_checkpoint(config: CheckpointConfig, run_path: Path) -> str | None:
    """The path of the newest, as far as commit files tell; asked on any rank, also where others are gone."""
    files = Files(checkpoints_path(config, run_path))
    try:
        folders = [entry.folder for entry in Shelf(files, 1).entries() if entry.commit]
    except OSError:
        return None
    return files.where(folders[0]) if folders else None


class Keeper:
    """Writes the checkpoints of a training. Every method is called on every rank.

    Args:
        store: of the run folder as it lies now. moved: the store of the run folder once it has taken its place, called
            after the first checkpoint; None where it lies there already.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        state: RunState,
        store: CheckpointStore,
        *,
        moved: Callable[[], CheckpointStore] | None = None,
    ) -> None:
        self._config, self._state, self._store, self._moved = config, state, store, moved
        self._best: list[tuple[float, str]] = []

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
        marks = self._marks_of(value) if value is not None else []
        if step == stop.best_step:
            marks.append(BEST)
        if last:
            marks.append(LAST)
        self._store.save(
            step,
            self._state.tensors(),
            state=self._state.numbers(step, stop),
            rank_state=self._state.of_rank(),
            marks=tuple(marks),
            background=self._config.background and not last and self._moved is None,
        )
        if self._moved:
            self._store.close()
            self._store, self._moved = self._moved(), None

    def _marks_of(self, value: float) -> list[str]:
        """A mark for one of the best validations: a free one, or that of the worst of those that have one."""
        wanted = self._config.keep_best - 1  # the very best has a mark of its own
        if len(self._best) < wanted:
            mark = f"good-{len(self._best) + 1}"
        elif wanted and value > min(self._best)[0]:
            mark = self._best.pop(self._best.index(min(self._best)))[1]
        else:
            return []
        self._best.append((value, mark))
        return [mark]

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Around the training: waits at its end for what is being written, also where it fails.

        Raises:
            UserError: on every rank; it cannot be written.
        """
        try:
            yield
        except BaseException:
            with suppress(Exception):  # what ended the training is what to tell
                self._store.close()
            raise
        self._store.close()
