"""Intervals and comparisons: by hand, against scipy, and by simulation of what they promise."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from torchrec_mt.retrieval import uncertainty
from torchrec_mt.retrieval.uncertainty import Interval, Method, bootstrap, compare, holm, sign_flip


def samples(number: int, anchors: int, *, shift: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Differences of many made-up comparisons, normal, of standard deviation 1."""
    value_MB = np.random.default_rng(seed).normal(shift, 1.0, (number, anchors))
    return {f"{n}": value_B for n, value_B in enumerate(value_MB)}


def recalls(anchors: int, seed: int = 0) -> np.ndarray:
    """Values as a metric has them: most are 0, the rest are thirds."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 4, anchors) / 3 * (rng.random(anchors) < 0.3)


SMALL = {
    "normal": np.random.default_rng(0).normal(size=40),
    "skewed": np.random.default_rng(1).exponential(size=25),
    "recall": recalls(30),
    "few": np.array([0.0, 1.0, 0.5]),
    "one hit": np.array([0.0] * 19 + [1.0]),
    "far from 0": 1e6 + np.arange(12.0),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_intervals_are_those_of_scipy(name: str, method: Method, confidence: float) -> None:
    """Both draw the same anchors from the same seed, so the intervals agree to rounding."""
    found = bootstrap({name: SMALL[name]}, method=method, confidence=confidence, resamples=999, seed=5)[name]
    expected = stats.bootstrap(
        (SMALL[name],),
        np.mean,
        n_resamples=999,
        method="BCa" if method == "bca" else "percentile",
        confidence_level=confidence,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-9)
    assert found.low <= found.mean == SMALL[name].mean() <= found.high


@pytest.mark.parametrize("entries_at_once", [1, 100, 1000])
def test_blocks_change_nothing(entries_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"a": recalls(37), "b": samples(1, 37)["0"]}
    whole = bootstrap(values, resamples=200), sign_flip(values, flips=500)
    monkeypatch.setattr(uncertainty, "_ENTRIES_AT_ONCE", entries_at_once)
    intervals, p_values = bootstrap(values, resamples=200), sign_flip(values, flips=500)
    for name in values:
        assert (intervals[name].low, intervals[name].high) == pytest.approx((whole[0][name].low, whole[0][name].high))
    assert p_values == whole[1]


def test_a_metric_does_not_depend_on_its_neighbours() -> None:
    gaps = recalls(50, seed=2)
    gaps[::5] = np.nan
    values = {"gaps": gaps, "a": recalls(50), "b": recalls(50, seed=1)}
    together, p_values = bootstrap(values), sign_flip(values, flips=500)
    assert list(together) == list(p_values) == list(values)
    for name, value_B in values.items():
        alone = bootstrap({name: value_B})[name]
        assert (alone.low, alone.high) == pytest.approx((together[name].low, together[name].high))
        assert sign_flip({name: value_B}, flips=500)[name] == p_values[name]


def test_the_seed_decides() -> None:
    first, second = {"m": recalls(60)}, {"m": recalls(60, seed=1)}
    assert compare(first, second, seed=3) == compare(first, second, seed=3)
    one, other = (compare(first, second, seed=seed)["m"] for seed in (3, 4))
    assert one.difference.mean == other.difference.mean
    assert one.difference.low != other.difference.low
    assert one.p_value != other.p_value


def test_anchors_without_a_value_are_left_out_and_counted() -> None:
    value_B = recalls(40)
    gaps = np.insert(value_B, [0, 7, 40], np.nan)
    found, whole = bootstrap({"m": gaps})["m"], bootstrap({"m": value_B})["m"]
    assert (whole.num_anchors, whole.num_left_out) == (40, 0)
    assert (found.num_anchors, found.num_left_out) == (40, 3)
    assert (found.mean, found.low, found.high) == (whole.mean, whole.low, whole.high)


def test_an_anchor_of_a_pair_is_left_out_where_either_has_no_value() -> None:
    first, second = recalls(40), recalls(40, seed=1)
    whole = compare({"m": first[2:]}, {"m": second[2:]})["m"]
    first[0] = second[0] = second[1] = np.nan
    found = compare({"m": first}, {"m": second})["m"]
    assert (found.difference.num_anchors, found.difference.num_left_out) == (38, 2)
    assert (found.p_value, found.effect_size) == (whole.p_value, whole.effect_size)
    assert found.difference.low == whole.difference.low


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_with_too_little_to_go_by(method: Method) -> None:
    values = {"none": [np.nan, np.nan, np.nan], "one": [0.5, np.nan, np.nan], "equal": [0.1, 0.1, 0.1]}
    found = bootstrap({name: np.array(value) for name, value in values.items()}, method=method)
    nan = pytest.approx(math.nan, nan_ok=True)
    assert found["none"] == Interval(mean=nan, low=nan, high=nan, num_anchors=0, num_left_out=3)
    assert found["one"] == Interval(mean=0.5, low=nan, high=nan, num_anchors=1, num_left_out=2)
    assert (found["equal"].low, found["equal"].high) == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize("seed", range(4))
def test_an_interval_has_bounds_where_all_resamples_lie_on_one_side(seed: int) -> None:
    found = bootstrap({"m": recalls(30)}, resamples=1, seed=seed)["m"]
    assert found.low == found.high
    assert 0 <= found.low <= 1


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("shape", ["normal", "recall"])
def test_intervals_hold_the_true_mean_as_often_as_they_say(shape: str, method: Method) -> None:
    """Of 2,000 samples of 200 anchors, 95% within 1.5 points: 3 standard errors of the simulation are 1.5 points.

    The intervals of a sample of 200 fall short of the promise by a few tenths of a point themselves.
    """
    if shape == "normal":
        values, truth = samples(2000, 200, shift=0.3), 0.3
    else:
        values, truth = {f"{n}": recalls(200, seed=n) for n in range(2000)}, 0.3 * 2 / 3
    intervals = bootstrap(values, method=method, resamples=2000).values()
    held = np.mean([interval.low <= truth <= interval.high for interval in intervals])
    assert held == pytest.approx(0.95, abs=0.015)


# Sign flips.


@pytest.mark.parametrize(
    "difference",
    [
        [0.5, 0.25, -0.1, 0.3, 0.2, 0.7],
        [1 / 3, -1 / 3, 2 / 3, 0.1, 0.2, -0.3],
        [0.0, 0.0, 0.5, 0.5, 0.25, 0.0],
        [1.0, -1.0],
        [0.2],
        [0.1] * 10 + [-0.1] * 3,
    ],
)
def test_with_few_anchors_the_p_value_is_exact(difference: list[float]) -> None:
    flipped = [abs(np.dot(signs, difference)) for signs in product([-1, 1], repeat=len(difference))]
    by_hand = np.mean([value >= abs(sum(difference)) - 1e-9 for value in flipped])
    found = sign_flip({"m": np.array(difference)})["m"]
    assert found == by_hand
    if len(difference) > 1:  # scipy wants two
        expected = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert found == pytest.approx(expected.pvalue)


def test_zero_differences_do_not_count_against_exactness() -> None:
    # Four of a thousand differ, all one way: two of sixteen flips are as far from 0.
    difference = np.zeros(1000)
    difference[[3, 500, 700, 999]] = [0.1, 0.5, 0.2, 1.0]
    assert sign_flip({"m": difference}, flips=16)["m"] == 2 / 16
    assert sign_flip({"m": np.zeros(1000)})["m"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_random_flips_come_near_the_exact_p_value(seed: int) -> None:
    difference = np.random.default_rng(seed).normal(0.3, 1.0, 16)
    exact = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    found = sign_flip({"m": difference}, flips=20_000)["m"]  # 2 ** 16 flips are more
    assert found != exact
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000))
    assert sign_flip({"m": difference}, flips=1 << 16)["m"] == pytest.approx(exact)


def test_a_p_value_is_never_0() -> None:
    assert sign_flip({"m": np.ones(1000)}, flips=99)["m"] == 1 / 100


def test_exact_only_where_all_flips_are_no_more_than_those_asked_for() -> None:
    assert sign_flip({"m": np.ones(4)}, flips=16)["m"] == 2 / 16
    assert sign_flip({"m": np.ones(4)}, flips=10)["m"] in [n / 11 for n in range(1, 12)]


@pytest.mark.parametrize("size", [1.0, 0.1, 1 / 3])
def test_equal_sums_count_as_far_whatever_their_rounding(size: float) -> None:
    """Differences of one size only: the sign test, whose p-value is a binomial's. Many flips have the very same sum."""
    difference = np.array([size] * 14 + [-size] * 6)
    exact = stats.binomtest(14, 20).pvalue
    found = sign_flip({"m": difference})["m"]
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 10_000))


def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    p_values = list(sign_flip(samples(2000, 40), flips=1999).values())
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.015)  # 3 standard errors


def test_a_real_difference_is_found() -> None:
    # A difference of 0.3 standard deviations on 150 anchors: the t test's power is 0.955.
    p_values = np.array(list(sign_flip(samples(1000, 150, shift=0.3), flips=1999).values()))
    assert np.mean(p_values <= 0.05) == pytest.approx(0.955, abs=0.02)


def test_two_systems_by_hand() -> None:
    found = compare({"m": np.array([1.0, 0.5, 0.5, 1.0])}, {"m": np.array([0.0, 0.5, 0.25, 0.25])})["m"]
    # Differences 1, 0, 1/4, 3/4: mean 1/2, sum of squares about it 5/8, over 3; two of eight flips are as far.
    assert found.difference.mean == 0.5
    assert found.effect_size == pytest.approx(0.5 / math.sqrt(5 / 24))
    assert found.p_value == 2 / 8
    assert found.difference.low < 0.5 < found.difference.high


def test_the_other_way_round_is_the_same_with_the_sign_changed() -> None:
    first, second = {"m": recalls(80)}, {"m": recalls(80, seed=1)}
    one, other = compare(first, second)["m"], compare(second, first)["m"]
    assert one.difference.mean == pytest.approx(-other.difference.mean)
    assert (one.difference.low, one.difference.high) == pytest.approx((-other.difference.high, -other.difference.low))
    assert one.effect_size == pytest.approx(-other.effect_size)
    assert one.p_value == other.p_value


def test_effect_sizes_without_spread() -> None:
    ones, none = np.ones(5), np.full(5, np.nan)
    found = compare({"same": ones, "shifted": ones, "none": none}, {"same": ones, "shifted": ones - 1, "none": none})
    assert found["same"].effect_size == 0
    assert found["same"].p_value == 1
    assert math.isnan(found["shifted"].effect_size)
    assert found["shifted"].p_value == 2 / 32
    assert math.isnan(found["none"].effect_size)
    assert math.isnan(found["none"].p_value)


def test_what_does_not_fit_is_told() -> None:
    value_B = np.zeros(3)
    with pytest.raises(ValueError, match=r"different metrics: \['b'\]"):
        compare({"a": value_B}, {"a": value_B, "b": value_B})
    with pytest.raises(ValueError, match=r"same anchors: .*\(3,\).*\(4,\)"):
        compare({"a": value_B}, {"a": np.zeros(4)})
    with pytest.raises(ValueError, match="one value per anchor"):
        bootstrap({"a": np.zeros((3, 2))})
    with pytest.raises(ValueError, match="resamples must be at least 1, not 0"):
        bootstrap({"a": value_B}, resamples=0)
    with pytest.raises(ValueError, match="flips must be at least 1, not 0"):
        sign_flip({"a": value_B}, flips=0)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, not 95"):
        bootstrap({"a": value_B}, confidence=95)


def test_no_metrics() -> None:
    assert bootstrap({}) == compare({}, {}) == sign_flip({}) == {}


# Holm.


def test_holm_by_hand() -> None:
    # Ascending 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1; the last is raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1, 1]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_holm_leaves_out_what_is_no_question() -> None:
    assert holm([math.nan, 0.01, math.nan, 0.02]) == pytest.approx([math.nan, 0.02, math.nan, 0.02], nan_ok=True)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 1), max_size=12), st.sampled_from([0.01, 0.05, 0.5]))
def test_holm_rejects_step_by_step(p_values: list[float], level: float) -> None:
    """The twin as the paper has it: from the smallest p-value on, until one is above level / (those left)."""
    rejected = set()
    for done, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[number] * (len(p_values) - done) > level:
            break
        rejected.add(number)
    assert {number for number, value in enumerate(holm(p_values)) if value <= level} == rejected
