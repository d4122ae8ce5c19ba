"""Relative gains over several tasks: by hand, and their intervals against a plain loop."""

import numpy as np
import pytest

from torchrec_mt.retrieval.gains import Paired, relative_gains


def paired(first: list[float], second: list[float], *, entity: str = "q") -> Paired:
    anchors = [(entity, at) for at in range(len(first))]
    return Paired(anchors=anchors, first=np.array(first), second=np.array(second))


def test_by_hand() -> None:
    found, whole = relative_gains({"a": paired([1, 0.2], [0.5, 0.5]), "b": paired([0.3, 0.3], [0.6, 0.2], entity="p")})
    assert found["a"].gain == pytest.approx(1.2 / 1.0 - 1)
    assert found["b"].gain == pytest.approx(0.6 / 0.8 - 1)
    assert whole.gain == pytest.approx((0.2 - 0.25) / 2)


def test_intervals_are_those_of_a_plain_loop() -> None:
    draw = np.random.default_rng(3)
    tasks = {
        "a": Paired(anchors=[("q", at) for at in range(40)], first=draw.random(40), second=draw.random(40)),
        "b": Paired(anchors=[("p", at) for at in range(10, 40)], first=draw.random(30), second=draw.random(30)),
        "c": Paired(anchors=[("p", at) for at in range(25)], first=draw.random(25), second=draw.random(25)),
    }
    tasks["b"].first[4] = tasks["c"].second[7] = np.nan
    found, whole = relative_gains(tasks, resamples=200, confidence=0.9, seed=5)
    every = list(dict.fromkeys(anchor for one in tasks.values() for anchor in one.anchors))
    gains: list[list[float]] = []
    for drawn in np.random.default_rng(5).integers(0, len(every), (200, len(every))):
        row = []
        for one in tasks.values():
            value = {anchor: (x, y) for anchor, x, y in zip(one.anchors, one.first, one.second, strict=True)}
            sums = [0.0, 0.0]
            for at in drawn:
                x, y = value.get(every[at], (0.0, 0.0))
                if not np.isnan(x + y):
                    sums[0] += x
                    sums[1] += y
            row.append(sums[0] / sums[1] - 1)
        gains.append(row)
    for number, task in enumerate(tasks):
        expected = np.quantile([row[number] for row in gains], [0.05, 0.95])
        assert (found[task].low, found[task].high) == pytest.approx(tuple(expected))
    expected = np.quantile([np.mean(row) for row in gains], [0.05, 0.95])
    assert (whole.low, whole.high) == pytest.approx(tuple(expected))


def test_tasks_on_the_same_anchors_hang_together() -> None:
    draw = np.random.default_rng(0)
    first, second = list(draw.random(200)), list(draw.random(200))
    one, alike = relative_gains({"a": paired(first, second), "b": paired(first, second)})
    assert (alike.low, alike.high) == (one["a"].low, one["a"].high)
    _, apart = relative_gains({"a": paired(first, second), "b": paired(first, second, entity="p")})
    assert apart.high - apart.low == pytest.approx((alike.high - alike.low) / 2**0.5, rel=0.15)


def test_what_has_no_gain() -> None:
    found, whole = relative_gains({"a": paired([1, 1], [0, 0]), "b": paired([2] * 30, [1] * 30, entity="p")})
    assert np.isnan([found["a"].gain, found["a"].low, found["a"].high]).all()
    assert (whole.gain, whole.low, whole.high) == (1, 1, 1), "only tasks that have one"
    found, whole = relative_gains({"a": paired([1], [2])})
    assert whole.gain == -0.5
    assert np.isnan([whole.low, whole.high, found["a"].low]).all()
    assert np.isnan(relative_gains({})[1].gain)


def test_values_that_do_not_fit_their_anchors() -> None:
    one = Paired(anchors=["x"], first=np.ones(2), second=np.ones(1))
    with pytest.raises(ValueError, match=r"task 'a' has \(1, 2, 1\) anchors and values"):
        relative_gains({"a": one})


def test_intervals_hold_the_true_gain_as_often_as_they_say() -> None:
    """Two tasks of which half of the anchors are shared; the first system has 1.2 and 0.9 times the second's mean."""
    draw, held, trials = np.random.default_rng(7), 0, 300
    for _ in range(trials):
        taste = draw.random(150)
        tasks = {}
        for task, ends, times in (("a", (0, 100), 1.2), ("b", (50, 150), 0.9)):
            second = taste[slice(*ends)] * draw.random(100)
            first = times * taste[slice(*ends)] * draw.random(100)
            tasks[task] = Paired(anchors=range(*ends), first=first, second=second)
        _, whole = relative_gains(tasks, resamples=400)
        held += whole.low <= 0.05 <= whole.high
    assert 0.91 <= held / trials <= 0.98
