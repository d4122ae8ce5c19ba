"""Sources of negatives: what a config may say, what the sampler draws, and that it knows how often it draws it.

Draws are tested by chi-square on a fixed seed: with d degrees of freedom a right sampler exceeds d + 5 sqrt(2 d) about
once in a million seeds, while one that drew evenly (or by another power) would exceed it a hundredfold here.
"""

import numpy as np
import pytest

from torchrec_mt.data.negatives import (
    InBatch,
    Memory,
    Mined,
    Named,
    NegativesConfig,
    NegativeSource,
    Popularity,
    Sampler,
    StreamingFrequencies,
    Uniform,
)

COUNTS = np.array([0, 1, 2, 50, 0, 7, 400, 3, 1, 20, 0])  # products never bought stand first, last and between
ROUNDS = 400


def sampler_of(*sources: NegativeSource) -> Sampler:
    return Sampler({"find": sources}, {"find": COUNTS}, len(COUNTS))


def drawn(sampler: Sampler, rounds: int = ROUNDS) -> np.ndarray:
    """Draws of many steps: id_RM."""
    return np.stack([sampler.draw(np.random.default_rng([7, step])) for step in range(rounds)])


def chi_square(id_RM: np.ndarray, share_N: np.ndarray) -> tuple[float, int]:
    """Pearson's statistic of the draws, and its degrees of freedom; what has no share must not come."""
    found_N = np.bincount(id_RM.ravel(), minlength=len(share_N))
    assert found_N[share_N == 0].sum() == 0
    wanted_N = (id_RM.size * share_N)[share_N > 0]
    return float(((found_N[share_N > 0] - wanted_N) ** 2 / wanted_N).sum()), len(wanted_N) - 1


def assert_drawn_by(id_RM: np.ndarray, share_N: np.ndarray) -> None:
    statistic, freedom = chi_square(id_RM, share_N)
    assert statistic < freedom + 5 * np.sqrt(2 * freedom), statistic


def test_uniform_draws_every_product_alike() -> None:
    id_RM = drawn(sampler_of(Uniform(count=50)))
    assert id_RM.shape == (ROUNDS, 50)
    assert_drawn_by(id_RM, np.full(len(COUNTS), 1 / len(COUNTS)))


@pytest.mark.parametrize("power", [0.5, 0.75, 1.0, 2.0])
def test_popularity_draws_by_a_power_of_the_counts(power: float) -> None:
    id_RM = drawn(sampler_of(Popularity(count=50, power=power)))
    assert_drawn_by(id_RM, COUNTS**power / (COUNTS**power).sum())


def test_the_statistic_tells_powers_apart() -> None:
    id_RM = drawn(sampler_of(Popularity(count=50, power=0.75)))
    for power in (0.7, 0.8):
        statistic, freedom = chi_square(id_RM, COUNTS**power / (COUNTS**power).sum())
        assert statistic > freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "sources",
    [
        (Uniform(count=50),),
        (Popularity(count=40, power=0.75),),
        (Popularity(count=30, power=1.0), Uniform(count=20), InBatch()),
        (InBatch(),),
    ],
    ids=["uniform", "popularity", "both", "in_batch"],
)
def test_expected_is_the_mean_number_of_copies(sources: tuple[NegativeSource, ...]) -> None:
    sampler = sampler_of(*sources)
    id_RM = drawn(sampler)
    copies_RN = (id_RM[:, :, None] == np.arange(len(COUNTS))).sum(axis=1)
    expected_N = sampler.expected("find", np.arange(len(COUNTS)))
    assert expected_N.dtype == np.float32
    assert expected_N.sum() == pytest.approx(id_RM.shape[1], abs=1e-4)
    assert (copies_RN.sum(axis=0)[expected_N == 0] == 0).all()
    # Copies of a product are near Poisson: the standard error of their mean is sqrt(expected / rounds).
    assert (abs(copies_RN.mean(axis=0) - expected_N) <= 5 * np.sqrt(expected_N / ROUNDS)).all()


def test_expected_by_hand() -> None:
    sampler = Sampler(
        {"find": (Uniform(count=6), Popularity(count=10, power=0.5))}, {"find": np.array([4, 0, 9])}, catalogue=3
    )
    # sqrt(counts) are 2, 0, 3; evenly 2 of 6 each.
    np.testing.assert_allclose(sampler.expected("find", np.array([2, 0, 1, 0])), [2 + 6, 2 + 4, 2, 2 + 4])
    assert sampler.expected("find", np.zeros(0, np.int64)).shape == (0,)


def test_tasks_share_the_uniform_draws_and_own_the_popular_ones() -> None:
    counts = {"find": COUNTS, "alike": np.where(np.arange(len(COUNTS)) == 0, 5, 0), "goes_with": COUNTS}
    sampler = Sampler(
        {
            "find": (InBatch(), Uniform(count=6)),
            "alike": (Popularity(count=3), Uniform(count=10)),
            "goes_with": (Popularity(count=4, power=1.0),),
            "other": (InBatch(),),
        },
        counts,
        len(COUNTS),
    )
    assert sampler.size == 10 + 3 + 4
    assert sampler.stretches == {
        "find": ((0, 6),),
        "alike": ((0, 10), (10, 13)),
        "goes_with": ((13, 17),),
        "other": (),
    }
    id_RM = drawn(sampler)
    assert id_RM.shape == (ROUNDS, 17)
    assert_drawn_by(id_RM[:, :6], np.full(len(COUNTS), 1 / len(COUNTS)))
    assert (id_RM[:, 10:13] == 0).all(), "only product 0 has pairs in 'alike'"
    assert_drawn_by(id_RM[:, 13:], COUNTS / COUNTS.sum())
    every = np.arange(len(COUNTS))
    np.testing.assert_allclose(sampler.expected("find", every), 6 / len(COUNTS), rtol=1e-6)
    np.testing.assert_allclose(sampler.expected("alike", every), 10 / len(COUNTS) + 3 * (every == 0), rtol=1e-6)
    np.testing.assert_allclose(sampler.expected("goes_with", every), 4 * COUNTS / COUNTS.sum(), rtol=1e-6)
    assert (sampler.expected("other", every) == 0).all()


def test_nothing_to_draw() -> None:
    sampler = sampler_of(InBatch(), Memory(), Named())
    assert sampler.size == 0
    assert sampler.draw(np.random.default_rng(0)).shape == (0,)
    assert sampler.stretches == {"find": ()}


def test_draws_repeat_by_their_generator() -> None:
    sampler = sampler_of(Uniform(count=20), Popularity(count=20))
    first, again, other = (sampler.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NegativesConfig(sources=()), r"sources = \(\): must be at least one source"),
        (lambda: NegativesConfig(tasks={"find": ()}), r"tasks\.find = \(\): must be at least one source"),
        (lambda: NegativesConfig(sources=(Uniform(count=1), Uniform(count=2))), "sources = .*must be distinct kinds"),
        (
            lambda: NegativesConfig(tasks={"find": (Mined(path="a"), InBatch(), Mined(path="b"))}),
            r"tasks\.find = \['mined', 'in_batch', 'mined'\]: must be distinct kinds",
        ),
        (lambda: Uniform(count=0), "count = 0: must be at least 1"),
        (lambda: Popularity(count=0), "count = 0: must be at least 1"),
        (lambda: Popularity(power=0.0), "power = 0.0: must be above 0 and at most 2"),
        (lambda: Popularity(power=2.1), "power = 2.1: must be above 0 and at most 2"),
        (lambda: Popularity(power=float("nan")), "power = nan"),
        (lambda: Memory(size=0), "size = 0: must be at least 1"),
        (lambda: Memory(max_age=0), "max_age = 0: must be at least 1"),
        (lambda: Memory(warmup=-1), "warmup = -1: must be at least 0"),
        (lambda: Named(count=0), "count = 0: must be at least 1"),
        (lambda: Mined(path="a", count=0), "count = 0: must be at least 1"),
        (lambda: StreamingFrequencies(buckets=0), "buckets = 0: must be at least 1"),
        (lambda: StreamingFrequencies(hashes=0), "hashes = 0: must be at least 1"),
        (lambda: StreamingFrequencies(rate=0.0), "rate = 0.0: must be above 0 and at most 1"),
        (lambda: StreamingFrequencies(rate=1.5), "rate = 1.5: must be above 0 and at most 1"),
    ],
)
def test_what_a_config_may_not_say(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_the_sources_of_a_task_replace_the_common_ones() -> None:
    config = NegativesConfig(sources=(InBatch(),), tasks={"find": (Uniform(count=3), Popularity(count=1, power=2.0))})
    assert config.of("find") == (Uniform(count=3), Popularity(count=1, power=2.0))
    assert config.of("alike") == (InBatch(),)
