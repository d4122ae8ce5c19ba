"""The training pairs of one task as endless streams, one a lane: each lane passes over its own stretch of row groups.

A pass has an order of its own: row groups are permuted, lanes take equal stretches of them, a window of row groups is
read at a time and its rows permuted. Where a stream stands is the number of pairs taken from it.
"""

import zlib
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.errors import UserError

_COLUMNS = ("anchor", "candidate", "weight", "grade")


class PairFile:
    """The training pairs of one task, of which every one of `lanes` lanes has an equal share in a pass.

    Raises:
        UserError: fewer pairs than lanes.
    """

    def __init__(self, dataset: PreparedDataset, task: str, lanes: int) -> None:
        self._dataset, self._path = dataset, dataset.pairs_path(task, "train")
        with dataset.reading(self._path):
            self._file = pq.ParquetFile(self._path, memory_map=True)
        metadata = self._file.metadata
        if metadata.num_rows < lanes:
            raise UserError(f"task '{task}' has {metadata.num_rows} training pairs for {lanes} ranks")
        groups = range(metadata.num_row_groups)
        self.group_rows = np.array([metadata.row_group(group).num_rows for group in groups], np.int64)
        self.lanes, self.share = lanes, metadata.num_rows // lanes

    @property
    def layout(self) -> str:
        """Tells files apart whose row groups differ, and so the order of pairs."""
        return f"{self.group_rows.sum()} pairs in {len(self.group_rows)} ({zlib.crc32(self.group_rows.tobytes()):08x})"

    def read(self, group: int, low: int, high: int) -> np.ndarray:
        """Rows [low, high) of a row group: anchor, candidate, weight, grade side by side (float64)."""
        with self._dataset.reading(self._path):
            table = self._file.read_row_group(group, columns=list(_COLUMNS)).slice(low, high - low)
        return np.stack([table[name].to_numpy().astype(np.float64) for name in _COLUMNS], axis=1)


class PairStream:
    """An endless stream of one task's training pairs for one lane.

    Args:
        seed: of the order. window: row groups read at a time. taken: pairs that were taken before; the row groups that
            held them are not read again.
    """

    def __init__(self, file: PairFile, *, seed: list[int], lane: int, window: int, taken: int = 0) -> None:
        self._file, self._seed, self._lane, self._window = file, seed, lane, window
        self._blocks = self._all_passes(taken)
        self._rows: np.ndarray = np.zeros((0, len(_COLUMNS)))

    def _all_passes(self, taken: int) -> Iterator[np.ndarray]:
        number, skipped = divmod(taken, self._file.share)
        while True:
            yield from self._one_pass(number, skipped)
            number, skipped = number + 1, 0

    def _one_pass(self, number: int, skipped: int) -> Iterator[np.ndarray]:
        """This lane's part of a pass: the pairs stand in one order for all lanes, and each takes its stretch of it.

        All parts are equally long, so all lanes pass on together; what does not divide (fewer pairs than lanes, others
        every time) is left out of the pass. The first `skipped` pairs are left out too.
        """
        rng = np.random.default_rng([*self._seed, number])
        order = rng.permutation(len(self._file.group_rows))
        ends = np.cumsum(self._file.group_rows[order])
        start = (int(rng.integers(ends[-1])) + self._lane * self._file.share) % int(ends[-1])
        stretches = _stretches(ends, start, self._file.share)
        own = np.random.default_rng([*self._seed, number, self._lane + 1])
        for first in range(0, len(stretches), self._window):
            window = stretches[first : first + self._window]
            # Drawn for what is skipped too: the next window's permutation depends on it.
            place = own.permutation(sum(high - low for _, low, high in window))[skipped:]
            skipped = max(0, skipped - sum(high - low for _, low, high in window))
            if len(place):
                yield np.concatenate([self._file.read(int(order[at]), low, high) for at, low, high in window])[place]

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The next pairs: anchor_B, candidate_B (int64), weight_B, grade_B (float32)."""
        parts = []
        while count > 0:
            if len(self._rows) == 0:
                self._rows = next(self._blocks)
            parts.append(self._rows[:count])
            self._rows = self._rows[count:]
            count -= len(parts[-1])
        anchor_B, candidate_B, weight_B, grade_B = np.concatenate(parts).T
        ids = anchor_B.astype(np.int64), candidate_B.astype(np.int64)
        return *ids, weight_B.astype(np.float32), grade_B.astype(np.float32)


def _stretches(ends: np.ndarray, start: int, length: int) -> list[tuple[int, int, int]]:
    """Which rows of which row groups, (position, low, high), make `length` rows from row `start` on, round the end.

    Args:
        ends: running number of rows at the end of each group.
    """
    total = int(ends[-1])
    found = []
    for low, high in ((start, min(start + length, total)), (0, max(0, start + length - total))):
        first, last = np.searchsorted(ends, [low, high - 1], side="right") if high > low else (0, -1)
        for at in range(first, last + 1):
            begin = int(ends[at - 1]) if at else 0
            found.append((at, max(low, begin) - begin, min(high, int(ends[at])) - begin))
    return found
