"""The walk of two hops and item-kNN against loops over their definitions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import PRODUCTS, TASKS
from tests.unit.retrieval.baselines.worlds import anchors_of, assert_ranked, dense, small_world, train_on
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines import ranker
from torchrec_mt.retrieval.baselines.neighbours import item_knn, two_hops
from torchrec_mt.retrieval.baselines.ranker import Ranker


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return small_world(tmp_path_factory.mktemp("world") / "tiny")


def walked(count_AN: np.ndarray) -> np.ndarray:
    """Chance that a walk of three steps by count ends at each candidate; -inf where it cannot."""
    end_AN = np.zeros_like(count_AN)
    for anchor in range(len(count_AN)):
        for middle in np.flatnonzero(count_AN[anchor]):
            there = count_AN[anchor, middle] / count_AN[anchor].sum()
            for other in np.flatnonzero(count_AN[:, middle]):
                back = count_AN[other, middle] / count_AN[:, middle].sum()
                for end in np.flatnonzero(count_AN[other]):
                    end_AN[anchor, end] += there * back * count_AN[other, end] / count_AN[other].sum()
    return np.where(end_AN > 0, end_AN, -np.inf)


def summed_cosines(count_AN: np.ndarray) -> np.ndarray:
    """Sum over the history of count x cosine; -inf where all cosines are 0."""
    cosine_NN = np.zeros((PRODUCTS, PRODUCTS))
    for one in range(PRODUCTS):
        for other in range(PRODUCTS):
            u_A, v_A = count_AN[:, one], count_AN[:, other]
            if u_A @ v_A:
                cosine_NN[one, other] = (u_A @ v_A) / (np.linalg.norm(u_A) * np.linalg.norm(v_A))
    score_AN = np.array([sum(row[n] * cosine_NN[n] for n in range(PRODUCTS)) for row in count_AN])
    return np.where(score_AN > 0, score_AN, -np.inf)


@pytest.mark.parametrize("k", [10, PRODUCTS])
@pytest.mark.parametrize("task", TASKS)
def test_two_hops_equal_a_walk(world: PreparedDataset, task: str, k: int) -> None:
    assert_ranked(two_hops(world, task)(anchors_of(task), k), walked(dense(world, task)), world, task)


@pytest.mark.parametrize("k", [10, PRODUCTS])
@pytest.mark.parametrize("task", TASKS)
def test_item_knn_equals_sums_of_cosines(world: PreparedDataset, task: str, k: int) -> None:
    score_AN = summed_cosines(dense(world, task, own_item=True))
    assert_ranked(item_knn(world, task)(anchors_of(task), k), score_AN, world, task)


@pytest.mark.parametrize("rival", [two_hops, item_knn])
def test_a_few_anchors_at_a_time_give_the_same(
    world: PreparedDataset, monkeypatch: pytest.MonkeyPatch, rival: Callable[[PreparedDataset, str], Ranker]
) -> None:
    anchor_B = anchors_of("goes_with")
    whole_BK = rival(world, "goes_with")(anchor_B, 10)
    monkeypatch.setattr(ranker, "_SCORES_AT_ONCE", 1)
    np.testing.assert_array_equal(rival(world, "goes_with")(anchor_B, 10), whole_BK)


def test_two_hops_keep_the_direction(tmp_path: Path) -> None:
    """Phones 1 and 2 share a case, 20; only 2 has the charger 30. The case has no accessories."""
    dataset = small_world(tmp_path / "tiny")
    train_on(dataset, "goes_with", {(1, 20): 3.0, (2, 20): 1.0, (2, 30): 1.0, (30, 40): 5.0, (6, 50): 1.0})
    # From 1 to 20 and back to 1 (3/4) or 2 (1/4), from there half the time to 30.
    assert two_hops(dataset, "goes_with")(np.array([1]), 2)[0].tolist() == [20, 30]
    # Nothing leads on from 20 itself: popularity, in which 20 (the anchor) would be first.
    assert two_hops(dataset, "goes_with")(np.array([20]), 3)[0].tolist() == [30, 40, 50]
