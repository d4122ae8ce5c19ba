"""What a person sees while a program runs: one console, one style of progress bar, live losses, validations."""

import math
import sys
import time
from collections.abc import Iterable
from functools import cache
from types import TracebackType

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from torchrec_mt.reporting.trimmed import Trimmed

_SHOWN = "recall@100"
_EVERY = 30.0
"""Seconds between lines where there is no terminal, at least."""
_LEAST_NAME = 8
"""Narrowest column of validations: a shortened task name."""


@cache
def console() -> Console:
    """Standard output."""
    return Console()


@cache
def progress_console() -> Console:
    """Standard error: progress never mixes with results."""
    return Console(stderr=True)


def _columns() -> list[ProgressColumn]:
    """Only the bar gives way where the terminal is narrow: it is the one column without `no_wrap`."""
    fixed = Column(no_wrap=True)
    return [
        TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=30, overflow="ellipsis")),
        BarColumn(bar_width=24),
        MofNCompleteColumn(table_column=fixed),
        TimeElapsedColumn(table_column=fixed),
        TimeRemainingColumn(compact=True, table_column=fixed),
        TextColumn("{task.fields[note]}", table_column=fixed),
    ]


class Bar(Progress):
    """A progress bar with lines below it. An interrupted or failed program leaves none of it behind."""

    below: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        for part in [*super().get_renderables(), *([] if self.below is None else [self.below])]:
            # A terminal echoes ^C at the end of the last line; if that wrapped, the lines could not be erased.
            yield Trimmed(part, spare=3)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.transient = kind is not None
        super().__exit__(kind, error, trace)


def progress_bar(*, enabled: bool = True) -> Bar:
    """A progress bar on standard error; silent where that is no terminal."""
    target = progress_console()
    return Bar(*_columns(), console=target, disable=not enabled or not target.is_terminal)


class TrainingProgress:
    """How far training is, pairs/s, the share of time spent waiting for data, losses; and a row per validation.

    On a terminal a bar with the losses below it. Elsewhere (a scheduler's log) a plain line with the same content, for
    the first and the last step and at most every 30 s between.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._bar = progress_bar(enabled=enabled)
        self._task = self._bar.add_task("train", total=None, note="")
        self._began: tuple[float, int] | None = None
        self._said_at = 0.0
        self._unsaid: str | None = None
        self._best, self._has_header = -math.inf, False

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unsaid:  # stopped before its last step
            self._say_plainly(self._unsaid)
        self._bar.__exit__(kind, error, trace)

    def step(self, step: int, steps: int, values: dict[str, float]) -> None:
        losses = {name[5:]: value for name, value in values.items() if name.startswith("loss/")}
        note = f"{values['pairs_per_second']:,.0f} pairs/s  waiting {waiting_share(values):.0%}"
        below = Table.grid(Column(no_wrap=True), Column(), padding=(0, 2, 0, 0))
        cells = [Text(f"{name} {value:.3f}", no_wrap=True) for name, value in losses.items()]
        below.add_row("loss", Columns(cells, padding=(0, 2, 0, 0)))
        self._bar.below = below
        self._bar.update(self._task, completed=step, total=steps, note=note)
        if self._enabled and not self._bar.console.is_terminal:
            named = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self._line(step, steps, f"step {step:,}/{steps:,}  {note}  loss {named}")

    def _line(self, step: int, steps: int, line: str) -> None:
        """Says a line, or keeps it where the last one was said just now."""
        now = time.monotonic()
        began, first = self._began = self._began or (now, step)
        if step > first:
            line += f"  {duration((now - began) / (step - first) * (steps - step))} left"
        if step == first or step >= steps or now - self._said_at >= _EVERY:
            self._said_at = now
            self._say_plainly(line)
        else:
            self._unsaid = line

    def _say_plainly(self, line: str) -> None:
        self._unsaid = None
        self._bar.console.print(Text(line), soft_wrap=True)

    def validation(self, step: int, values: dict[str, float]) -> None:
        if not self._enabled:
            return
        console, chosen = self._bar.console, values["chosen"]
        tasks = {name.rpartition("/")[0]: value for name, value in values.items() if name.endswith(f"/{_SHOWN}")}
        widths = name_widths(list(tasks), console.width if console.is_terminal else sys.maxsize)
        if not self._has_header:
            self._has_header = True
            names = "  ".join(_fitted(name, width) for name, width in zip(tasks, widths, strict=True))
            self._say(f"[dim]validation: {_SHOWN} of each task; chosen: what trainer.metric says[/]")
            self._say(f"[dim]{'step':>7}  {names}  {'chosen':>6}[/]")
        cells = "  ".join(f"{value:>{width}.4f}" for value, width in zip(tasks.values(), widths, strict=True))
        self._say(f"{step:>7}  {cells}  {chosen:.4f}{' best' if chosen > self._best else ''}")
        self._best = max(self._best, chosen)

    def warning(self, step: int, text: str) -> None:
        if self._enabled:
            self._say(f"[yellow]step {step}: warning: {text}[/]")

    def resumed(self, step: int, path: str, *, best: float) -> None:
        self._best = best
        if self._enabled:
            self._say(f"goes on after step {step}, from {path}")

    def started(self, lines: Iterable[str]) -> None:
        if self._enabled:
            for line in lines:
                self._say(escape(line))

    def _say(self, line: str) -> None:
        self._bar.console.print(line, highlight=False, soft_wrap=True)


def waiting_share(values: dict[str, float]) -> float:
    """Part of a step's time in which the rank that waits longest waits for data; 0 where nothing is timed."""
    total = sum(value for name, value in values.items() if name.startswith("ms/"))
    return values.get("ms_max/data", values.get("ms/data", 0.0)) / total if total else 0.0


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def name_widths(names: list[str], width: int) -> list[int]:
    """Widths of the columns of validations, such that a row fits: long names are shortened first, to 8 at least."""
    room = width - len(f"{'':>7}  ") - len("  chosen best")
    widths = [max(_LEAST_NAME, len(name)) for name in names]
    while sum(widths) + 2 * (len(names) - 1) > room and max(widths, default=0) > _LEAST_NAME:
        widths[widths.index(max(widths))] -= 1
    return widths


def _fitted(name: str, width: int) -> str:
    return f"{name:>{width}}" if len(name) <= width else name[: width - 1] + "…"
