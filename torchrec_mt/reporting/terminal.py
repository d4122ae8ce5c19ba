"""What a person sees while a program runs: one console, one style of progress bar, live losses."""

from functools import cache
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@cache
def console() -> Console:
    """Standard output."""
    return Console()


@cache
def progress_console() -> Console:
    """Standard error: progress never mixes with results."""
    return Console(stderr=True)


def progress_bar(*, enabled: bool = True) -> Progress:
    """A progress bar on standard error; silent where that is no terminal."""
    target = progress_console()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
        console=target,
        disable=not enabled or not target.is_terminal,
    )


class TrainingProgress:
    """A bar with pairs/s and losses, and one line per validation (also where there is no terminal)."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._bar = progress_bar(enabled=enabled)
        self._task = self._bar.add_task("train", total=None, note="")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, step: int, steps: int, values: dict[str, float]) -> None:
        losses = "  ".join(f"{name[5:]} {value:.3f}" for name, value in values.items() if name.startswith("loss/"))
        note = f"{values['pairs_per_second']:,.0f} pairs/s  loss {losses}"
        self._bar.update(self._task, completed=step, total=steps, note=note)

    def validation(self, step: int, values: dict[str, float]) -> None:
        if not self._enabled:
            return
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if name.endswith("/recall@100"))
        self._bar.console.print(f"step {step}: validation {shown}", highlight=False, soft_wrap=True)

    def warning(self, step: int, text: str) -> None:
        if self._enabled:
            self._bar.console.print(f"[yellow]step {step}: warning: {text}[/]", highlight=False, soft_wrap=True)
