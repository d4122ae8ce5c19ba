"""Treemaps: areas in proportion, nothing beside or above another, the example of the paper."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mt.reporting.treemap import Area, Box, squarify, tile


def test_the_example_of_the_paper() -> None:
    boxes = squarify([6, 6, 4, 3, 2, 2, 1], 6, 4)
    expected = [(0, 0, 3, 2), (0, 2, 3, 2), (3, 0, 12 / 7, 7 / 3), (33 / 7, 0, 9 / 7, 7 / 3)]
    for box, values in zip(boxes, expected, strict=False):
        assert (box.x, box.y, box.width, box.height) == pytest.approx(values)


@given(st.lists(st.floats(1e-3, 1e15), min_size=1, max_size=60), st.floats(1, 1000), st.floats(1, 1000))
def test_areas_are_in_proportion_and_fill_the_rectangle(sizes: list[float], width: float, height: float) -> None:
    sizes.sort(reverse=True)
    boxes = squarify(sizes, width, height)
    scale = width * height / sum(sizes)
    for size, box in zip(sizes, boxes, strict=True):
        assert box.width * box.height == pytest.approx(size * scale, rel=1e-6)
        assert -1e-9 <= box.x <= box.x + box.width <= width * (1 + 1e-9)
        assert -1e-9 <= box.y <= box.y + box.height <= height * (1 + 1e-9)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=25))
def test_boxes_do_not_overlap(sizes: list[int]) -> None:
    boxes = squarify(sorted(map(float, sizes), reverse=True), 30, 20)
    for at, one in enumerate(boxes):
        for other in boxes[:at]:
            assert not inside(one, other)


def inside(one: Box, other: Box) -> bool:
    across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    return across > 1e-6 and down > 1e-6


def test_many_sizes_of_all_kinds_are_laid() -> None:
    sizes = [2.0**-at for at in range(900)]
    assert len(squarify(sizes, 100, 100)) == 900


def area(name: str, mark: str = "") -> Area:
    return Area(1.0, name, mark, "t", f"{name}: much")


@pytest.mark.parametrize(
    ("name", "mark", "width", "label"),
    [
        ("brand", "3", 100, "brand"),
        ("product_category", "3", 100, "3"),
        ("product_category", "", 100, "produc…ategory"),
        ("product_category", "", 40, None),
        ("product_category", "12", 10, None),
    ],
)
def test_labels_stand_where_they_fit(name: str, mark: str, width: int, label: str | None) -> None:
    drawn = str(tile([area(name, mark)], 1.0, "rank 0", width=width, height=100))
    assert f"<title>{name}: much</title>" in drawn
    assert (f">{label}</text>" in drawn) if label else ("</text>" not in drawn)


def test_a_tile_is_filled_as_far_as_told() -> None:
    half = str(tile([area("a")], 0.5, "r", width=100, height=100))
    assert 'd="M0 500H1000V1000H0z"' in half
    assert "path" not in str(tile([], 0.0, "r", width=100, height=100))
    assert 'd="M0 970H1000V1000H0z"' in str(tile([area("a")], 1e-6, "r", width=100, height=100)), "still seen"
