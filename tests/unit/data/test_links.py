"""Links: what is written is read back, whatever the rows asked for, and an empty file maps."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mt.data.links import Links, links_bytes, links_dtype, write_links


def written(folder: Path, rows: list[list[int]], linked: int, block: int = 3) -> Links:
    flat = np.array([value for row in rows for value in row], np.int64)
    blocks = (flat[start : start + block] for start in range(0, len(flat), block))
    write_links(folder, "x", np.array([len(row) for row in rows], np.int64), linked, blocks)
    return Links.open(folder, "x")


def test_links_by_hand(tmp_path: Path) -> None:
    links = written(tmp_path / "new", [[2, 5], [], [0, 1, 9]], linked=10)
    assert links.offsets.tolist() == [0, 2, 2, 5]
    assert links.values.dtype == np.int32
    assert isinstance(links.values, np.memmap)
    owner_L, id_L = links.of(np.array([2, 0, 1, 2]))
    assert owner_L.tolist() == [0, 0, 0, 1, 1, 3, 3, 3]
    assert id_L.tolist() == [0, 1, 9, 2, 5, 0, 1, 9]
    assert owner_L.dtype == id_L.dtype == np.int64


@given(
    rows=st.lists(st.lists(st.integers(0, 99), unique=True).map(sorted), min_size=1, max_size=8),
    data=st.data(),
)
def test_links_equal_the_slow_twin(rows: list[list[int]], data: st.DataObject) -> None:
    asked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12))
    expected = [(position, value) for position, row in enumerate(asked) for value in rows[row]]
    with TemporaryDirectory() as folder:
        owner_L, id_L = written(Path(folder), rows, linked=100, block=data.draw(st.integers(1, 5))).of(
            np.array(asked, np.int64)
        )
    assert list(zip(owner_L.tolist(), id_L.tolist(), strict=True)) == expected


def test_no_links_at_all(tmp_path: Path) -> None:
    links = written(tmp_path, [[], []], linked=1)
    owner_L, id_L = links.of(np.array([1, 0, 1]))
    assert len(owner_L) == len(id_L) == len(links.values) == 0


def test_a_row_beyond_the_last_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        written(tmp_path, [[1], [2]], linked=3).of(np.array([2]))


def test_blocks_must_add_up(tmp_path: Path) -> None:
    def short() -> Iterator[np.ndarray]:
        yield np.array([1])

    with pytest.raises(AssertionError, match=r"1 values came, 2 were announced"):
        write_links(tmp_path, "x", np.array([2]), 3, short())


def test_rows_that_do_not_fit_an_int32_get_an_int64() -> None:
    assert links_dtype(1 << 31) == np.int32
    assert links_dtype((1 << 31) + 1) == np.int64
    assert links_bytes(3, 5, 10) == 8 * 4 + 4 * 5
