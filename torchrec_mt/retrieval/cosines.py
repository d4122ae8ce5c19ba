"""Distributions of the model's cosines: of right answers, of the best wrong ones, of any candidates.

Legend: B anchors, R right answers, N random candidates.
"""

from typing import Any

import numpy as np

BINS = 60


def cosines_json(
    right_R: np.ndarray, owner_R: np.ndarray, wrong_B: np.ndarray, random_BN: np.ndarray
) -> dict[str, Any]:
    """Counts in equally wide bins, and how far right answers stand above the others.

    Args:
        right_R: cosines of right answers, of anchor owner_R. wrong_B: of the best answer that is not right, NaN for
            none. random_BN: of each anchor with the same random candidates.
    """
    right_R, wrong_B, random_BN = (part.astype(np.float64) for part in (right_R, wrong_B, random_BN))
    known_B = ~np.isnan(wrong_B)
    parts = {"right": right_R, "wrong": wrong_B[known_B], "random": random_BN.ravel()}
    every = np.concatenate(list(parts.values()))
    low, high = float(np.floor(every.min() * 10) / 10), float(np.ceil(every.max() * 10) / 10)
    high = high if high > low else low + 0.1
    known_R = known_B[owner_R]
    above_wrong = right_R[known_R] > wrong_B[owner_R[known_R]]
    return {
        "anchors": len(wrong_B),
        "low": low,
        "high": high,
        "counts": {name: np.histogram(part, BINS, (low, high))[0].tolist() for name, part in parts.items()},
        "means": {name: float(part.mean()) if len(part) else None for name, part in parts.items()},
        "above_wrong": float(above_wrong.mean()) if len(above_wrong) else None,
        "above_random": float((random_BN[owner_R] < right_R[:, None]).mean()),
    }
