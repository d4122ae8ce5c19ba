"""How much better a model is over several tasks: relative gains, their mean over tasks, bootstrap intervals of both.

Anchors are drawn again with replacement out of those of all tasks together, so that an anchor which two tasks share is
drawn in both: the tasks' gains hang together as far as their anchors do.

Legend: U anchors of all tasks, B those of one, T tasks, R resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torchrec_mt.retrieval.uncertainty import resampled_sums


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A task's values of two systems.

    Args:
        anchors: what tells an anchor from all others of any task, each once. first, second: value_B; NaN where an
            anchor has none.
    """

    anchors: Sequence[object]
    first: np.ndarray
    second: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What the first system has more, as a share of what the second has, with its interval.

    Args:
        gain: NaN where the second's mean is 0. low, high: NaN where a resample has it 0, or without two anchors.
    """

    gain: float
    low: float
    high: float


def relative_gains(
    tasks: Mapping[str, Paired], *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[dict[str, Gain], Gain]:
    """Gain of the first system over the second by task, and the mean over tasks (Maninis et al., CVPR 2019).

    Intervals are percentiles of the resamples. An anchor without a value of either system is left out. A task in which
    the second system has nothing has no gain, and is not in the mean.

    Raises:
        ValueError: anchors and values of a task differ in number.
    """
    names: dict[object, int] = {}
    for task, one in tasks.items():
        if not len(one.anchors) == len(one.first) == len(one.second):
            sizes = (len(one.anchors), len(one.first), len(one.second))
            raise ValueError(f"task '{task}' has {sizes} anchors and values of two systems: they must be as many")
        for anchor in one.anchors:
            names.setdefault(anchor, len(names))
    value_UM = np.zeros((len(names), 2 * len(tasks)))
    for number, one in enumerate(tasks.values()):
        known_B = ~(np.isnan(one.first) | np.isnan(one.second))
        at_B = np.array([names[anchor] for anchor in one.anchors], np.int64)[known_B]
        value_UM[at_B, 2 * number] = one.first[known_B]
        value_UM[at_B, 2 * number + 1] = one.second[known_B]
    gain_T = _gains(value_UM.sum(axis=0, keepdims=True))[0]
    gain_RT = np.full((resamples, len(tasks)), np.nan)
    if len(names) > 1:
        gain_RT = _gains(resampled_sums(value_UM, resamples, np.random.default_rng(seed)))
    found = {task: _gain(gain_T[number], gain_RT[:, number], confidence) for number, task in enumerate(tasks)}
    counted_T = ~np.isnan(gain_T)
    if not counted_T.any():
        return found, Gain(gain=math.nan, low=math.nan, high=math.nan)
    return found, _gain(gain_T[counted_T].mean(), gain_RT[:, counted_T].mean(axis=1), confidence)


def _gains(sum_RM: np.ndarray) -> np.ndarray:
    """gain_RT of sums over anchors, first and second system in turn."""
    first_RT, second_RT = sum_RM[:, 0::2], sum_RM[:, 1::2]
    gain_RT = np.full(first_RT.shape, np.nan)
    np.divide(first_RT, second_RT, out=gain_RT, where=second_RT != 0)
    return gain_RT - 1


def _gain(gain: float, gain_R: np.ndarray, confidence: float) -> Gain:
    low, high = math.nan, math.nan
    if not np.isnan(gain_R).any():
        low, high = np.quantile(gain_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Gain(gain=float(gain), low=float(low), high=float(high))
