"""How sure a mean over anchors is: bootstrap intervals, paired comparison of two systems, Holm's correction.

Stands behind `metrics` and `lists`: both give one value per anchor, and anchors are what a test set is a sample of. An
anchor without a value (NaN) is left out, metric by metric, and counted; of a pair, where either system has none.
Nothing here depends on which other metrics are asked for beside one, and the seed decides everything else.

Legend: B anchors, R resamples, M metrics with the same anchors left out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri
from threadpoolctl import threadpool_limits

Method = Literal["bca", "percentile"]

_ENTRIES_AT_ONCE = 1 << 20  # 8 MiB of float64
_SAME = 1e-12
"""Sums that are nearer than this (relative to the sum of absolute values) differ by rounding only."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over anchors and its bootstrap interval.

    Args:
        mean: NaN without anchors. low, high: NaN with fewer than two. num_anchors: with a value. num_left_out: without.
    """

    mean: float
    low: float
    high: float
    num_anchors: int
    num_left_out: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two systems on the same anchors, the first minus the second.

    Args:
        difference: mean of the differences and its interval. p_value: two-sided, of "the sign of each difference is a
            coin's toss"; NaN without anchors. effect_size: Cohen's d_z, the mean difference in standard deviations of
            the differences; 0 where all are 0, NaN where all are another number or fewer than two.
    """

    difference: Interval
    p_value: float
    effect_size: float


def bootstrap(
    values: Mapping[str, np.ndarray],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    method: Method = "bca",
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of means over anchors, the anchors being drawn again with replacement.

    All metrics that leave out the same anchors are judged on the same draws.

    Args:
        values: value_B of each metric, the same anchors in all; NaN where an anchor has none.
        method: "bca" mends the percentile interval for bias and skewness (Efron, JASA 1987).

    Raises:
        ValueError: metrics of different lengths, resamples < 1, or confidence not between 0 and 1.
    """
    _check(values, "resamples", resamples)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    found = {}
    for names, value_BM, left_out in _by_anchors(values):
        mean_RM = _resampled_means(value_BM, resamples, np.random.default_rng(seed))
        for number, name in enumerate(names):
            value_B, mean_R = value_BM[:, number], mean_RM[:, number]
            low, high = _bounds(value_B, mean_R, confidence, method)
            mean = float(value_B.mean()) if len(value_B) else math.nan
            found[name] = Interval(mean=mean, low=low, high=high, num_anchors=len(value_B), num_left_out=left_out)
    return {name: found[name] for name in values}


def compare(
    first: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    *,
    resamples: int = 1000,
    flips: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compares two systems on the same anchors, metric by metric: is the first better, by how much, is it chance?

    The p-value is that of a sign-flip (Fisher's randomisation) test, which Smucker et al. (CIKM 2007) advise for mean
    metrics: were the systems alike, each difference could as well have the other sign. Of so many random flips it is
    (1 + those at least as far from 0) / (1 + flips) (Phipson & Smyth, SAGMB 2010), or exact where all flips of the
    differences that are not 0 are no more than that.

    Args:
        first, second: value_B of each metric, the same metrics and anchors in both; NaN where an anchor has none.

    Raises:
        ValueError: metrics or anchors that do not fit together, or numbers out of range, see `bootstrap`.
    """
    if first.keys() != second.keys():
        raise ValueError(f"the systems have different metrics: {sorted(first.keys() ^ second.keys())}")
    _check({**{f"first {name}": first[name] for name in first}, **second}, "flips", flips)
    differences = {name: np.asarray(first[name], float) - second[name] for name in first}
    intervals = bootstrap(differences, resamples=resamples, confidence=confidence, seed=seed)
    p_values = sign_flip(differences, flips=flips, seed=seed)
    return {
        name: Comparison(
            difference=intervals[name], p_value=p_values[name], effect_size=_effect_size(differences[name])
        )
        for name in differences
    }


def sign_flip(differences: Mapping[str, np.ndarray], *, flips: int = 10_000, seed: int = 0) -> dict[str, float]:
    """Two-sided p-value of each metric's differences, see `compare`.

    Args:
        differences: difference_B of each metric, NaN where an anchor has none.

    Raises:
        ValueError: metrics of different lengths, or flips < 1.
    """
    _check(differences, "flips", flips)
    found = {}
    for names, value_BM, _ in _by_anchors(differences):
        far_M = _far_flips(value_BM, flips, np.random.default_rng(seed))
        for name, value_B, far in zip(names, value_BM.T, far_M, strict=True):
            some_B = value_B[value_B != 0]
            if not len(value_B):
                found[name] = math.nan
            elif len(some_B) < flips.bit_length():  # 2 ** len(some_B) <= flips
                found[name] = _exact_p(some_B)
            else:
                found[name] = (1 + int(far)) / (1 + flips)
    return {name: found[name] for name in differences}


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for the number of questions asked (Holm, Scandinavian Journal of Statistics 1979).

    The i-th smallest of m is multiplied by m - i + 1 and raised to the one before it, up to 1. At 0.05 the chance of
    one or more false discoveries among them all is 0.05 at most. NaN stays NaN and is no question.
    """
    p_value_M = np.asarray(p_values, float)
    order = np.argsort(p_value_M)[: np.count_nonzero(~np.isnan(p_value_M))]
    adjusted = p_value_M.copy()
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_value_M[order] * np.arange(len(order), 0, -1)))
    return adjusted.tolist()


def _check(values: Mapping[str, np.ndarray], what: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{what} must be at least 1, not {number}")
    shapes = {name: np.shape(value) for name, value in values.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"metrics must have one value per anchor, of the same anchors: {shapes}")


def _by_anchors(values: Mapping[str, np.ndarray]) -> Iterator[tuple[list[str], np.ndarray, int]]:
    """Metrics that have values for the same anchors, together: names, value_BM, and the number of anchors left out."""
    groups: dict[bytes, list[str]] = {}
    for name, value_B in values.items():
        groups.setdefault(np.isnan(value_B).tobytes(), []).append(name)
    for names in groups.values():
        value_BM = np.stack([values[name] for name in names], axis=1).astype(np.float64)
        known_B = ~np.isnan(value_BM[:, 0])
        yield names, value_BM[known_B], int((~known_B).sum())


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _ENTRIES_AT_ONCE // max(1, width))
    for low in range(0, rows, step):
        yield slice(low, min(low + step, rows))


def _resampled_means(value_BM: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    anchors = len(value_BM)
    if not anchors:
        return np.full((resamples, value_BM.shape[1]), np.nan)
    return resampled_sums(value_BM, resamples, rng) / anchors


def resampled_sums(value_BM: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Sums over each resample of the anchors, sum_RM: how often each anchor was drawn, times the values."""
    anchors = len(value_BM)
    sum_RM = np.empty((resamples, value_BM.shape[1]))
    for rows in _blocks(resamples, anchors):
        size = rows.stop - rows.start
        drawn = rng.integers(0, anchors, (size, anchors)) + np.arange(size)[:, None] * anchors
        times_RB = np.bincount(drawn.ravel(), minlength=size * anchors).reshape(size, anchors)
        sum_RM[rows] = _product(times_RB.astype(np.float64), value_BM)
    return sum_RM


def _product(a_RB: np.ndarray, b_BM: np.ndarray) -> np.ndarray:
    """The product on one thread: more of them add up in another order, and last digits would hang on the machine."""
    with threadpool_limits(1, "blas"):
        return a_RB @ b_BM


def _bounds(value_B: np.ndarray, mean_R: np.ndarray, confidence: float, method: Method) -> tuple[float, float]:
    if len(value_B) < 2:
        return math.nan, math.nan
    mean = value_B.mean()
    if np.ptp(value_B) == 0:
        return float(mean), float(mean)
    levels = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        levels = _bca_levels(value_B, mean_R, levels)
    low, high = np.quantile(mean_R, levels)
    return float(low), float(high)


def _bca_levels(value_B: np.ndarray, mean_R: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Which quantiles of the resampled means to take instead of those at `levels`.

    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 14.3. The jackknife of a mean is known without
    leaving anchors out: the acceleration is a sixth of the skewness, over the root of the number.
    """
    same = _SAME * np.abs(value_B).mean()
    apart_R = mean_R - value_B.mean()
    below = (np.mean(apart_R < -same) + np.mean(apart_R <= same)) / 2
    bias = ndtri(np.clip(below, 0.5 / len(mean_R), 1 - 0.5 / len(mean_R)))
    centred_B = value_B - value_B.mean()
    acceleration = (centred_B**3).sum() / (6 * (centred_B**2).sum() ** 1.5)
    shifted = bias + ndtri(levels)
    return ndtr(bias + shifted / (1 - acceleration * shifted))


def _exact_p(value_B: np.ndarray) -> float:
    """Share of all sign flips whose sum is as far from 0 as that of the values."""
    sums = np.zeros(1)
    for value in value_B:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(np.abs(sums) >= _far_enough(value_B)))


def _far_flips(value_BM: np.ndarray, flips: int, rng: np.random.Generator) -> np.ndarray:
    """Number of random sign flips whose sum is as far from 0 as that of the values, per metric."""
    anchors = len(value_BM)
    limit_M, far_M = _far_enough(value_BM), np.zeros(value_BM.shape[1], np.int64)
    for rows in _blocks(flips, anchors):
        bits = rng.integers(0, 1 << 32, (rows.stop - rows.start, -(-anchors // 32)), np.uint32)
        flip_RB = np.unpackbits(bits.view(np.uint8), axis=1, count=anchors).astype(np.float64)
        far_M += (np.abs(value_BM.sum(axis=0) - 2 * _product(flip_RB, value_BM)) >= limit_M).sum(axis=0)
    return far_M


def _far_enough(value_BM: np.ndarray) -> np.ndarray:
    """Distance from 0 of the sum of the values, and a little less: a sum in another order rounds otherwise."""
    return np.abs(value_BM.sum(axis=0)) - _SAME * np.abs(value_BM).sum(axis=0)


def _effect_size(difference_B: np.ndarray) -> float:
    difference_B = difference_B[~np.isnan(difference_B)]
    if len(difference_B) < 2:
        return math.nan
    if np.ptp(difference_B) == 0:
        return 0.0 if difference_B[0] == 0 else math.nan
    return float(difference_B.mean() / difference_B.std(ddof=1))
