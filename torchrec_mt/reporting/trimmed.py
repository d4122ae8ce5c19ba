"""Lines without the blanks that rich fills up to a common width: pipes and files get none, and a cursor stays put."""

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment


class Trimmed:
    """A renderable without trailing blanks.

    Args:
        spare: columns of the terminal to leave free.
    """

    def __init__(self, inner: RenderableType, *, spare: int = 0) -> None:
        self._inner, self._spare = inner, spare

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        narrower = options.update(width=max(1, options.max_width - self._spare))
        for line in console.render_lines(self._inner, narrower, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                yield from line[:-1]
                yield Segment(line[-1].text.rstrip(), line[-1].style)
            yield Segment.line()
