"""ALS against dense alternating least squares; BPR, whose draws no twin repeats, by what it must find."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.tiny import TASKS
from tests.unit.retrieval.baselines.worlds import SEEN_PRODUCTS, SEEN_QUERIES, anchors_of, dense, small_world
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.factors import als, bpr
from torchrec_mt.retrieval.baselines.ranker import Ranker

Rival = Callable[[PreparedDataset, str], Ranker]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return small_world(tmp_path_factory.mktemp("world") / "tiny")


def seen(task: str) -> np.ndarray:
    return anchors_of(task)[: SEEN_QUERIES if task == "find" else SEEN_PRODUCTS]


def solved(count_AN: np.ndarray, other_ND: np.ndarray, penalty: float) -> np.ndarray:
    """Each row by least squares against given vectors: 1 of weight 40 x count where there is a count, else 0."""
    found = []
    for count_N in count_AN:
        weight_N = np.where(count_N > 0, 40 * count_N, 1.0)
        left = other_ND.T @ (weight_N[:, None] * other_ND) + penalty * np.eye(other_ND.shape[1])
        found.append(np.linalg.solve(left, other_ND.T @ (weight_N * (count_N > 0))))
    return np.array(found)


@pytest.mark.parametrize("task", TASKS)
def test_als_ranks_as_dense_least_squares_do(world: PreparedDataset, task: str) -> None:
    """`implicit` takes three steps of conjugate gradients for each solution: near, not equal. (With a confidence
    of 1 x count it loses 6% of the score.)"""
    count_AN = dense(world, task)[seen(task), :SEEN_PRODUCTS]
    rng = np.random.default_rng(0)
    anchor_AD, item_ND = (rng.random((rows, 6), np.float32) * 0.01 for rows in count_AN.shape)
    for _ in range(15):
        anchor_AD = solved(count_AN, item_ND, 0.01)
        item_ND = solved(count_AN.T, anchor_AD, 0.01)
    score_AN = anchor_AD @ item_ND.T
    if task != "find":
        np.fill_diagonal(score_AN, -np.inf)
    best_BK = -np.sort(-score_AN, axis=1)[:, :5]
    found_BK = np.take_along_axis(score_AN, als(world, task, factors=6)(seen(task), 5), axis=1)
    assert 0.97 * best_BK.sum() < found_BK.sum() <= best_BK.sum()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rival", [als, bpr])
def test_most_of_what_is_found_is_of_the_right_group(world: PreparedDataset, task: str, rival: Rival) -> None:
    ranked_BK = rival(world, task)(seen(task), 5)
    wanted_B = (seen(task) + (task == "goes_with")) % 6
    assert (ranked_BK % 6 == wanted_B[:, None]).mean() > 0.6  # by chance 1 in 6; a fifth of the pairs is noise
    assert (ranked_BK < SEEN_PRODUCTS).all()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rival", [als, bpr])
def test_they_repeat_bit_by_bit(world: PreparedDataset, task: str, rival: Rival) -> None:
    first, second = (rival(world, task)(anchors_of(task), 20).tolist() for _ in range(2))
    assert first == second
