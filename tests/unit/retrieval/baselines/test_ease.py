"""EASE against one regression per item, and its bounds."""

import numpy as np
import pytest

from tests.tiny import PRODUCTS, TASKS
from tests.unit.retrieval.baselines.worlds import anchors_of, assert_ranked, dense, small_world
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines import ease as module
from torchrec_mt.retrieval.baselines.ease import ease


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return small_world(tmp_path_factory.mktemp("world") / "tiny")


def regressed(history_AN: np.ndarray, items: list[int], penalty: float) -> np.ndarray:
    """Each item's column predicted from the other columns by ridge regression; -inf where there is no history."""
    score_AN = np.full(history_AN.shape, -np.inf)
    known = history_AN[:, items].any(axis=1)
    for item in items:
        others = [other for other in items if other != item]
        x_AM = history_AN[:, others]
        weight_M = np.linalg.solve(x_AM.T @ x_AM + penalty * np.eye(len(others)), x_AM.T @ history_AN[:, item])
        score_AN[known, item] = x_AM[known] @ weight_M
    return score_AN


@pytest.mark.parametrize("penalty", [2.0, 100.0])
@pytest.mark.parametrize("task", TASKS)
def test_ease_equals_one_ridge_regression_per_item(world: PreparedDataset, task: str, penalty: float) -> None:
    history_AN = (dense(world, task, own_item=True) > 0).astype(float)
    items = np.flatnonzero(history_AN.any(axis=0)).tolist()
    ranked = ease(world, task, penalty=penalty)(anchors_of(task), PRODUCTS)
    assert_ranked(ranked, regressed(history_AN, items, penalty), world, task, rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_of_too_many_items_the_most_frequent_take_part(world: PreparedDataset, task: str) -> None:
    history_AN = (dense(world, task, own_item=True) > 0).astype(float)
    frequency_N = history_AN.sum(axis=0)
    items = sorted(sorted(range(PRODUCTS), key=lambda row: (-frequency_N[row], row))[:20])
    ranked = ease(world, task, max_items=20)(anchors_of(task), PRODUCTS)
    assert_ranked(ranked, regressed(history_AN, items, 100.0), world, task, rel=1e-5)


def test_the_inverse_is_mirrored_by_blocks(world: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ease(world, "alike")(anchors_of("alike"), 20)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert ease(world, "alike")(anchors_of("alike"), 20).tolist() == whole.tolist()
