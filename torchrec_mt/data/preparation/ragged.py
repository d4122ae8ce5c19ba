"""Rows of different lengths as two flat arrays (compressed rows): row i is values[offsets[i] : offsets[i + 1]]."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """offsets: int64 [rows + 1]; values: [offsets[-1]]."""

    offsets: np.ndarray
    values: np.ndarray

    @classmethod
    def of_lengths(cls, lengths: np.ndarray, values: np.ndarray) -> "Ragged":
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(offsets, values)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "Ragged":
        """Some rows, in the order asked for."""
        lengths = self.lengths[rows]
        taken = Ragged.of_lengths(lengths, np.zeros(0))
        shift = self.offsets[rows] - taken.offsets[:-1]
        return Ragged(taken.offsets, self.values[np.arange(taken.offsets[-1]) + np.repeat(shift, lengths)])

    def concatenated(self, groups: np.ndarray, count: int) -> "Ragged":
        """Rows joined by their group (ascending numbers below `count`)."""
        lengths = np.bincount(groups, weights=self.lengths, minlength=count).astype(np.int64)
        return Ragged.of_lengths(lengths, self.values)

    def kept(self, mask: np.ndarray) -> "Ragged":
        """Values where `mask` holds."""
        lengths = np.zeros(len(self.offsets) - 1, np.int64)
        filled = self.lengths > 0
        if len(mask):
            lengths[filled] = np.add.reduceat(mask, self.offsets[:-1][filled], dtype=np.int64)
        return Ragged.of_lengths(lengths, self.values[mask])

    def head(self, longest: int) -> "Ragged":
        """The first values of every row, at most `longest`."""
        position = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths)
        return self.kept(position < longest)
