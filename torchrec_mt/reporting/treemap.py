"""Tiles of a treemap as inline SVG: what a rank holds, areas in proportion to bytes. Lengths are shares of the tile."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from markupsafe import Markup

_LEAST = 0.03
"""Share of a tile's height that is filled where there is anything at all: it would not be seen else."""
_LETTER, _LINE = 6.6, 15
"""Pixels of a label: width of a letter, height of a line."""


@dataclass(frozen=True)
class Area:
    """What lies in a tile: its size above 0, its name, its mark where the name has no room, its classes, its title."""

    size: float
    name: str
    mark: str
    kind: str
    title: str


@dataclass(frozen=True)
class Box:
    """A rectangle, from the corner at the top left."""

    x: float
    y: float
    width: float
    height: float


def squarify(sizes: Sequence[float], width: float, height: float) -> list[Box]:
    """Boxes with areas in proportion to `sizes`, as square as can be, filling a rectangle.

    Args:
        sizes: above 0, the largest first.

    Source: Bruls, Huizing, van Wijk, "Squarified Treemaps" (2000). What is left of the rectangle is taken from what is
    left of the sizes, not by subtraction, so that it never vanishes.
    """
    left = [*accumulate(reversed(sizes), initial=0.0)][::-1]
    boxes: list[Box] = []
    x = y = 0.0
    while len(boxes) < len(sizes):
        start = len(boxes)
        scale = width * height / left[start]
        end = _row_end(sizes, start, scale, min(width, height))
        along = [0.0, *accumulate(sizes[start:end])]
        share, rest = along[-1] / left[start], left[end] / left[start]
        along = [at / along[-1] for at in along]
        if width >= height:
            boxes += [Box(x, y + height * at, width * share, height * (to - at)) for at, to in pairwise(along)]
            x, width = x + width * share, width * rest
        else:
            boxes += [Box(x + width * at, y, width * (to - at), height * share) for at, to in pairwise(along)]
            y, height = y + height * share, height * rest
    return boxes


def _row_end(sizes: Sequence[float], start: int, scale: float, side: float) -> int:
    """Where a row along the shorter side ends: one box more would make its least square box even less so."""
    total, end = sizes[start], start + 1

    def worst(total: float, least: float) -> float:
        thick = total * scale / side
        return max(sizes[start] * scale / thick**2, thick**2 / (least * scale))

    while end < len(sizes) and worst(total + sizes[end], sizes[end]) <= worst(total, sizes[end - 1]):
        total += sizes[end]
        end += 1
    return end


def tile(areas: Sequence[Area], share: float, label: str, *, width: int, height: int) -> Markup:
    """A tile that is filled from the bottom.

    Args:
        areas: the largest first. share: of the height that is filled; the least is a thin line. label: for those who
            do not see it. width, height: pixels it has at least, into which labels must fit.
    """
    filled = max(share, _LEAST) if areas else 0.0
    boxes = squarify([area.size for area in areas], width, height * filled)
    top = height * (1 - filled)
    drawn = [_drawn(area, box, top, width, height) for area, box in zip(areas, boxes, strict=True)]
    return Markup('<svg class="tile" role="img" aria-label="{}">{}</svg>').format(label, Markup().join(drawn))


def _drawn(area: Area, box: Box, top: float, width: int, height: int) -> Markup:
    x, y = f"{100 * box.x / width:.2f}%", f"{100 * (top + box.y) / height:.2f}%"
    label = _label(area, box)
    text = Markup('<text x="{}" y="{}" dx="4" dy="13">{}</text>').format(x, y, label) if label else ""
    return Markup('<g class="{}"><title>{}</title><rect x="{}" y="{}" width="{:.2f}%" height="{:.2f}%"/>{}</g>').format(
        area.kind, area.title, x, y, 100 * box.width / width, 100 * box.height / height, text
    )


def _label(area: Area, box: Box) -> str:
    """The name where it fits, else its beginning, else its mark, else nothing."""
    letters = int((box.width - 6) / _LETTER)
    if box.height < _LINE:
        return ""
    if len(area.name) <= letters:
        return area.name
    return f"{area.name[: letters - 1]}…" if letters >= 7 else area.mark if len(area.mark) <= letters else ""
