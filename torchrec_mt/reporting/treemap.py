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
    drawn = [(area, Box(box.x, top + box.y, box.width, box.height)) for area, box in zip(areas, boxes, strict=True)]
    shapes = [_shape(area, box, width, height) for area, box in drawn]
    texts = [_text(area, box, width, height) for area, box in drawn]
    return Markup(
        '<svg class="tile" role="img" aria-label="{}"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none">{}</svg>'
        "{}</svg>"
    ).format(label, Markup().join(shapes), Markup().join(texts))


def _shape(area: Area, box: Box, width: int, height: int) -> Markup:
    """A rectangle in thousandths of the tile."""
    left, right = (round(1000 * x / width) for x in (box.x, box.x + box.width))
    top, bottom = (round(1000 * y / height) for y in (box.y, box.y + box.height))
    return Markup('<path class="{}" d="M{} {}H{}V{}H{}z"><title>{}</title></path>').format(
        area.kind, left, top, right, bottom, left, area.title
    )


def _text(area: Area, box: Box, width: int, height: int) -> Markup:
    label = _label(area, box)
    if not label:
        return Markup()
    return Markup('<text class="{}" x="{:.1f}%" y="{:.1f}%" dx="4" dy="13">{}</text>').format(
        area.kind, 100 * box.x / width, 100 * box.y / height, label
    )


def _label(area: Area, box: Box) -> str:
    """The name where it fits, else the mark, else both ends of the name, else nothing."""
    letters = int((box.width - 6) / _LETTER) if box.height >= _LINE else 0
    if len(area.name) <= letters:
        return area.name
    if area.mark or letters < 7:
        return area.mark if len(area.mark) <= letters else ""
    return f"{area.name[: (letters - 1) // 2]}…{area.name[-(letters // 2) :]}"
