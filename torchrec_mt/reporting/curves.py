"""Charts with two axes as inline SVG: lines over steps or seconds with bands, and points with intervals over a cost.

What belongs to a method has its number: a colour (a class of the styles) and a shape, so that neither is needed alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from torchrec_mt.reporting.charts import COLOURS

_WIDTH, _HEIGHT = 360.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 8.0, 36.0
_SHAPES = 4
"""Of `charts.shapes`."""
_FEW = 15
"""Points of a line, up to which each has a mark."""
Written = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """A method's values over what is across; `low` and `high` bound its band, if there is one."""

    name: str
    number: int
    xs: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Point:
    """A method's value at its cost, with its interval if there is one."""

    title: str
    number: int
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scale:
    """An axis: the round numbers at which it is labelled, from one end to the other."""

    ticks: Sequence[float]
    start: float
    end: float
    written: Written = field(default=str)

    def __call__(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def round_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers, at most so many and one more, from one that is no more than `low` to one no less than `high`; on
    both sides of a lone value."""
    if low == high:
        aside = 0.05 * abs(low) or 0.5
        low, high = low - aside, high + aside
    span = high - low
    unit = 10.0 ** math.floor(math.log10(span / (most - 1)))
    step = next(unit * one for one in (1, 2, 2.5, 5, 10) if unit * one >= span / (most - 1) * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * at for at in range(first, max(last, first + 1) + 1)]


def plainly(ticks: Sequence[float]) -> Written:
    """Writes the numbers of an axis with as many decimals as they need to be told apart."""
    step = ticks[1] - ticks[0]
    places = next((at for at in range(8) if abs(round(step, at) - step) < step / 1000), 8)
    return lambda value: f"{value:,.{places}f}".replace("-", "−") if round(value, places) else "0"


def line_chart(
    lines: Sequence[Line], label: str, *, across: str, zero: bool = False, mark: float | None = None
) -> Markup:
    """Lines with their bands, from 0 on.

    Args:
        across: what the horizontal axis counts. zero: whether 0 is to be seen. mark: where a line stands across.
    """
    ys = [value for line in lines for value in (*line.mean, *line.low, *line.high)] + [0.0] * zero
    x = _scale([0.0, *(value for line in lines for value in line.xs)], _LEFT, _WIDTH - _RIGHT, most=4)
    y = _scale(ys, _HEIGHT - _BOTTOM, _TOP)
    parts = [_frame(x, y, across)]
    if mark is not None:
        parts.append(Markup('<path class="budget" d="M{:.1f} {}V{}"/>').format(x(mark), _TOP, _HEIGHT - _BOTTOM))
    parts += [_band(line, x, y) for line in lines if line.low]
    parts += [_drawn(line, x, y) for line in lines]
    return _chart(parts, label)


def point_chart(points: Sequence[Point], label: str, *, across: str, up: Written | None = None) -> Markup:
    """Points with their intervals over a cost from 0 on.

    Args:
        across: what the horizontal axis counts. up: writes the numbers of the vertical axis; None: plainly.
    """
    ys = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    x = _scale([0.0, *(point.x for point in points)], _LEFT, _WIDTH - _RIGHT, most=4)
    y = _scale(ys, _HEIGHT - _BOTTOM, _TOP, written=up)
    parts = [_frame(x, y, across)]
    for point in points:
        inner = Markup("<title>{}</title>").format(point.title)
        if point.low is not None and point.high is not None:
            inner += Markup('<path class="l" d="M{:.1f} {:.1f}V{:.1f}"/>').format(
                x(point.x), y(point.low), y(point.high)
            )
        parts.append(_of(point.number, inner + _shape(point.number, x(point.x), y(point.y), 0.7)))
    return _chart(parts, label)


def key(number: int) -> Markup:
    """The mark of a method in a legend."""
    return Markup('<svg class="key" viewBox="-10 -10 20 20" aria-hidden="true">{}</svg>').format(
        _of(number, _shape(number, 0, 0, 1))
    )


def _scale(values: Iterable[float], start: float, end: float, most: int = 5, written: Written | None = None) -> Scale:
    values = list(values)
    ticks = round_ticks(min(values), max(values), most)
    return Scale(ticks, start, end, written or plainly(ticks))


def _chart(parts: Sequence[Markup], label: str) -> Markup:
    return Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {:g} {:g}">{}</svg>').format(
        label, _WIDTH, _HEIGHT, Markup().join(parts)
    )


def _frame(x: Scale, y: Scale, across: str) -> Markup:
    """Lines and numbers of both axes; what is counted across stands below its last number."""
    parts = []
    for tick in y.ticks:
        kind = "grid zero" if not tick and y.ticks[0] < 0 else "grid"
        parts.append(
            Markup(
                '<path class="{}" d="M{:g} {:.1f}H{:g}"/><text x="{:g}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(kind, _LEFT, y(tick), _WIDTH - _RIGHT, _LEFT - 5, y(tick) + 4, y.written(tick))
        )
    for at, tick in enumerate(x.ticks):
        last = at == len(x.ticks) - 1
        parts.append(
            Markup('<text x="{:.1f}" y="{:g}" text-anchor="{}">{}</text>').format(
                x(tick) + (_RIGHT if last else 0), _HEIGHT - 21, "end" if last else "middle", x.written(tick)
            )
        )
    unit = Markup('<text x="{:g}" y="{:g}" text-anchor="end">{}</text>')
    parts.append(unit.format(_WIDTH, _HEIGHT - 6, across))
    return Markup().join(parts)


def _band(line: Line, x: Scale, y: Scale) -> Markup:
    there = [f"{x(at):.1f} {y(value):.1f}" for at, value in zip(line.xs, line.high, strict=True)]
    back = [f"{x(at):.1f} {y(value):.1f}" for at, value in zip(line.xs, line.low, strict=True)]
    return _of(line.number, Markup('<path class="band" d="M{}z"/>').format("L".join(there + back[::-1])))


def _drawn(line: Line, x: Scale, y: Scale) -> Markup:
    at = [(x(one), y(value)) for one, value in zip(line.xs, line.mean, strict=True)]
    path = "L".join(f"{one:.1f} {value:.1f}" for one, value in at)
    marked = at if len(at) <= _FEW else at[-1:]
    return _of(
        line.number,
        Markup("<title>{}</title>").format(f"{line.name}: {line.mean[-1]:.4g} at the end")
        + Markup('<path class="l" d="M{}"/>').format(path)
        + Markup().join(_shape(line.number, *one, 0.45) for one in marked),
    )


def _of(number: int, inner: Markup) -> Markup:
    """What belongs to a method; beyond the colours that there are, lines are dashed and shapes others."""
    dashed = " dashed" if number >= COLOURS else ""
    return Markup('<g class="c{}{}" data-method="{}">{}</g>').format(number % COLOURS, dashed, number, inner)


def _shape(number: int, x: float, y: float, size: float) -> Markup:
    return Markup('<use href="#s{}" transform="translate({:.1f} {:.1f}) scale({:g})"/>').format(
        (number + number // COLOURS) % _SHAPES, x, y, size
    )
