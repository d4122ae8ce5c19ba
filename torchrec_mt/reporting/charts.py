"""Small charts as inline SVG: marks on a line with intervals, stacked bars, histograms, a map.

Colours are classes of the styles. Lengths across a strip are shares of its width, so that it fits any column; its words
stand beside it as HTML.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_LEFT, _WIDE = 3.0, 94.0
"""Percent of a strip left free at the sides, and used: a mark at the edge is not cut."""
_PLOT_WIDTH, _PLOT_HEIGHT, _PLOT_LEFT = 340, 120, 6
COLOURS = 8
"""Groups of a map with a colour of their own."""
_SHAPES = ("M-7 0a7 7 0 1 0 14 0a7 7 0 1 0-14 0", "M-6-6h12v12h-12z", "M0-8L8 6h-16z", "M0-9L9 0 0 9-9 0z")


@dataclass(frozen=True)
class Mark:
    """A value with its interval; `role` is its class: model, rival, other, oracle."""

    value: float | None
    low: float | None
    high: float | None
    role: str
    title: str


def ceiling(values: Iterable[float | None]) -> float:
    """A round number no value is above, where an axis from 0 may end; 1 without values."""
    most = max((value for value in values if value is not None), default=0.0)
    if most <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(most))
    return next(unit * step for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if unit * step >= most * (1 - 1e-9))


def ticks(top: float, bottom: float = 0.0) -> list[float]:
    """Where an axis from `bottom` to `top` is labelled."""
    return [bottom, (bottom + top) / 2, top]


def _across(value: float, top: float, bottom: float = 0.0) -> str:
    return f"{_LEFT + _WIDE * min(max((value - bottom) / (top - bottom), 0.0), 1.0):.2f}%"


def strip(marks: Sequence[Mark], top: float, bottom: float = 0.0) -> Markup:
    """Marks on a line from `bottom` to `top`: one above the other where there are two."""
    parts = []
    for tick in ticks(top, bottom):
        x = _across(tick, top, bottom)
        parts.append(_line(x, "0", x, "100%", "grid zero" if bottom < 0 and tick == 0 else "grid"))
    for number, mark in enumerate(marks):
        y = f"{100 * (number + 1) / (len(marks) + 1):.0f}%"
        if mark.value is None:
            continue
        inner = Markup("<title>{}</title>").format(mark.title)
        if mark.low is not None and mark.high is not None:
            inner += _line(_across(mark.low, top, bottom), y, _across(mark.high, top, bottom), y, "span")
        inner += Markup('<circle cx="{}" cy="{}" r="3.5"/>').format(_across(mark.value, top, bottom), y)
        parts.append(Markup('<g class="{}">{}</g>').format(mark.role, inner))
    label = "; ".join(mark.title for mark in marks)
    return Markup('<svg class="strip" role="img" aria-label="{}">{}</svg>').format(label, Markup().join(parts))


@dataclass(frozen=True)
class Part:
    """A piece of a bar; `role` is its class."""

    value: float
    role: str
    title: str


def bar(parts: Sequence[Part], top: float, mark: float | None = None) -> Markup:
    """Parts one after the other on a line from 0 to `top`, with a line across at `mark`; figures stand beside it."""
    drawn = [Markup('<use href="#ticks"/>')]
    start = 0.0
    for part in parts:
        if part.value > 0:
            wide = f"{_WIDE * part.value / top:.2f}%"
            drawn.append(
                Markup('<rect class="{}" x="{}" y="15%" width="{}" height="70%"><title>{}</title></rect>').format(
                    part.role, _across(start, top), wide, part.title
                )
            )
        start += part.value
    if mark is not None:
        drawn.append(_line(_across(mark, top), "0", _across(mark, top), "100%", "mean"))
    return Markup('<svg class="strip" aria-hidden="true">{}</svg>').format(Markup().join(drawn))


def bar_ticks() -> Markup:
    """The grid that bars use, once a page."""
    lines = [_line(_across(tick, 1.0), "0", _across(tick, 1.0), "100%", "grid") for tick in ticks(1.0)]
    return Markup('<g id="ticks">{}</g>').format(Markup().join(lines))


def axis(top: float, written: Callable[[float], str] = "{:.3g}".format, bottom: float = 0.0) -> Markup:
    """The labels of strips and bars from `bottom` up to `top`."""
    told = [
        Markup('<text x="{}" y="12" text-anchor="{}">{}</text>').format(
            _across(tick, top, bottom), anchor, written(tick)
        )
        for tick, anchor in zip(ticks(top, bottom), ("start", "middle", "end"), strict=True)
    ]
    return Markup('<svg class="axis" aria-hidden="true">{}</svg>').format(Markup().join(told))


def _line(x1: str, y1: str, x2: str, y2: str, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, x1, y1, x2, y2)


def histogram(counts: Mapping[str, Sequence[int]], low: float, high: float, label: str) -> Markup:
    """Shares of each kind by bin, one outline each, from `low` to `high`; the class is the kind."""
    shares = {kind: [one / max(1, sum(found)) for one in found] for kind, found in counts.items()}
    most = max((max(found, default=0.0) for found in shares.values()), default=0.0) or 1.0
    parts = []
    for kind, found in shares.items():
        wide = _PLOT_WIDTH / max(1, len(found))
        steps = "".join(
            f"L{_PLOT_LEFT + wide * at:.1f} {_PLOT_HEIGHT * (1 - share / most):.1f}h{wide:.1f}"
            for at, share in enumerate(found)
        )
        path = f"M{_PLOT_LEFT} {_PLOT_HEIGHT}{steps}V{_PLOT_HEIGHT}z"
        parts.append(Markup('<path class="{}" d="{}"><title>{}</title></path>').format(kind, path, kind))
    for tick in (low, (low + high) / 2, high):
        x = _PLOT_LEFT + _PLOT_WIDTH * (tick - low) / (high - low)
        where = "start" if tick == low else "end" if tick == high else "middle"
        text = '<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>'
        parts.append(Markup(text).format(x, _PLOT_HEIGHT + 15, where, f"{tick:.2f}".replace("-", "−")))
    size = f"0 -2 {_PLOT_WIDTH + 2 * _PLOT_LEFT} {_PLOT_HEIGHT + 22}"
    return Markup('<svg class="histogram" role="img" aria-label="{}" viewBox="{}">{}</svg>').format(
        label, size, Markup().join(parts)
    )


def groups(names: Iterable[str | None]) -> list[str]:
    """The most frequent names, which have a colour, most frequent first."""
    count: dict[str, int] = {}
    for name in names:
        if name is not None:
            count[name] = count.get(name, 0) + 1
    return sorted(count, key=lambda name: (-count[name], name))[:COLOURS]


def scatter(points: Sequence[tuple[int, int, str, str | None]], coloured: Sequence[str], label: str) -> Markup:
    """Points (x and y in thousandths, title, group), those with a colour on top; colour and shape tell the group."""
    number = {name: at for at, name in enumerate(coloured)}
    parts = []
    for x, y, title, group in sorted(points, key=lambda point: point[3] in number):
        kind = number.get(group, -1) if group is not None else -1
        said = title if group is None else f"{title} ({group})"
        parts.append(
            Markup('<use href="#s{}" class="g{}" x="{}" y="{}"><title>{}</title></use>').format(
                max(kind, 0) % len(_SHAPES), "" if kind < 0 else kind, x, 1000 - y, said
            )
        )
    return Markup('<svg class="map" role="img" aria-label="{}" viewBox="-15 -15 1030 1030">{}</svg>').format(
        label, Markup().join(parts)
    )


def shapes() -> Markup:
    """The shapes that maps use, once a page."""
    paths = [Markup('<path id="s{}" d="{}"/>').format(at, shape) for at, shape in enumerate(_SHAPES)]
    return Markup('<svg class="shapes" aria-hidden="true"><defs>{}</defs></svg>').format(Markup().join(paths))


def key(number: int | None) -> Markup:
    """The mark of a group in a legend."""
    shape = _SHAPES[(number or 0) % len(_SHAPES)]
    return Markup(
        '<svg class="key" viewBox="-10 -10 20 20" aria-hidden="true"><path class="g{}" d="{}"/></svg>'
    ).format("" if number is None else number, shape)
