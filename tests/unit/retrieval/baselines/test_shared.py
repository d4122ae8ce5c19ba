"""What every rival promises: whole lists, nothing twice, not the anchor itself, an answer where it knows nothing."""

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from tests.raw_shop import ids, make_schema, run
from tests.tiny import PRODUCTS, TASKS
from tests.unit.retrieval.baselines.worlds import SEEN_PRODUCTS, SEEN_QUERIES, anchors_of, small_world, train_on
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines import ranker
from torchrec_mt.retrieval.baselines.counting import popularity
from torchrec_mt.retrieval.baselines.names import BASELINES, Baseline
from torchrec_mt.retrieval.baselines.rankers import baseline_rankers
from torchrec_mt.retrieval.evaluator import EvaluateConfig

COUNTING: tuple[Baseline, ...] = ("co_occurrence", "co_occurrence_cosine", "co_occurrence_lift")
TRAINED: tuple[Baseline, ...] = ("popularity", *COUNTING, "two_hops", "item_knn", "ease", "als", "bpr")
"""Those that learn from training pairs, and from nothing else."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return small_world(tmp_path_factory.mktemp("world") / "tiny")


def ranked(dataset: PreparedDataset, task: str, name: Baseline, anchors: np.ndarray, k: int) -> np.ndarray:
    return baseline_rankers(dataset, task, EvaluateConfig(baselines=(name,)))[name](anchors, k)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", [*TRAINED, "random"])
def test_lists_are_whole(world: PreparedDataset, task: str, name: Baseline) -> None:
    anchors = anchors_of(task)
    for k in (1, 10, PRODUCTS + 5):
        rows_BK = ranked(world, task, name, anchors, k)
        assert rows_BK.shape == (len(anchors), k)
        assert rows_BK.dtype == np.int64
        for anchor, rows in zip(anchors, rows_BK.tolist(), strict=True):
            there = PRODUCTS - (task != "find")
            assert rows[there:] == [-1] * (k - there)
            assert len(set(rows[:there])) == min(k, there)
            assert set(rows[:there]) <= set(range(PRODUCTS)) - ({anchor} if task != "find" else set())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", TRAINED)
def test_an_anchor_unseen_in_training_gets_popularity(world: PreparedDataset, task: str, name: Baseline) -> None:
    unseen = anchors_of(task)[SEEN_QUERIES if task == "find" else SEEN_PRODUCTS :]
    assert not np.isin(unseen, world.pairs(task, "train")["anchor"]).any()
    expected = popularity(world, task)(unseen, PRODUCTS)
    assert ranked(world, task, name, unseen, PRODUCTS).tolist() == expected.tolist()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", TRAINED)
def test_without_training_pairs_all_is_popularity(tmp_path: Path, task: str, name: Baseline) -> None:
    dataset = small_world(tmp_path / "tiny")
    train_on(dataset, task, {})
    rows = ranked(dataset, task, name, np.array([3, 0]), 4).tolist()
    assert rows == ([[0, 1, 2, 3], [0, 1, 2, 3]] if task == "find" else [[0, 1, 2, 4], [1, 2, 3, 4]])


@pytest.mark.parametrize("name", TRAINED)
def test_no_anchors_are_no_rows(world: PreparedDataset, name: Baseline) -> None:
    assert ranked(world, "find", name, np.zeros(0, np.int64), 7).shape == (0, 7)


@pytest.mark.parametrize("name", ["two_hops", "item_knn", "ease", "als"])
@pytest.mark.parametrize("task", ["find", "goes_with"])
def test_equal_candidates_are_ranked_by_row(tmp_path: Path, task: str, name: Baseline) -> None:
    """Anchors 1 and 2 share one candidate; what each has beside it is the same but for its row."""
    dataset = small_world(tmp_path / "tiny")
    train_on(dataset, task, {(a, c): 2.0 for a in (1, 2) for c in (17, 9, 30, 12)} | {(3, 40): 1.0})
    found = ranked(dataset, task, name, np.array([1]), 4)[0].tolist()
    if name == "als":  # vectors of equal candidates are equal but for the last bits
        found.sort()
    assert found == [9, 12, 17, 30]


@pytest.mark.parametrize("name", ["two_hops", "item_knn"])
def test_anchors_by_blocks_are_ranked_as_together(
    world: PreparedDataset, name: Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = ranked(world, "alike", name, anchors_of("alike"), 20)
    monkeypatch.setattr(ranker, "_SCORES_AT_ONCE", 7 * PRODUCTS)
    assert ranked(world, "alike", name, anchors_of("alike"), 20).tolist() == together.tolist()


def test_all_of_them_on_five_products(tmp_path: Path) -> None:
    """Fewer candidates than k everywhere, and words for those that read them."""
    dataset = run(tmp_path, make_schema())
    config = EvaluateConfig(baselines=BASELINES)
    for task in ("search", "together"):
        anchors = np.arange(len(ids(dataset, "query" if task == "search" else "product")))
        rankers = baseline_rankers(dataset, task, config, model=popularity(dataset, task))
        assert tuple(rankers) == BASELINES
        for name, rank in rankers.items():
            rows_BK = rank(anchors, 100)
            assert rows_BK.shape == (len(anchors), 100), name
            for anchor, rows in zip(anchors, rows_BK.tolist(), strict=True):
                found = [row for row in rows if row >= 0]
                assert len(set(found)) == len(found) <= 5, name
                assert rows[len(found) :] == [-1] * (100 - len(found)), name
                assert task == "search" or anchor not in found, name


def test_fusion_needs_text_and_a_model(tmp_path: Path) -> None:
    dataset = run(tmp_path, make_schema())
    config = EvaluateConfig(baselines=("fusion", "popularity"))
    assert list(baseline_rankers(dataset, "search", config)) == ["popularity"]
    dataset = run(tmp_path / "mute", make_schema(), queries={"query": ["q1", "q2"], "words": ["?", ""]})
    rankers = baseline_rankers(dataset, "search", config, model=popularity(dataset, "search"))
    assert list(rankers) == ["popularity"]


@pytest.mark.parametrize("same", [False, True])
def test_the_best_of_sparse_scores_are_those_of_dense_ones(same: bool) -> None:
    rng = np.random.default_rng(0)
    score_BN = np.maximum(rng.integers(-3, 3, (9, 12)), 0).astype(np.float64)  # many ties, empty rows, zeros
    score_BN[4] = 0
    anchor_B = rng.integers(0, 12, 9)
    for k in (1, 5, 12, 20):
        expected = []
        for row_N, own in zip(score_BN, anchor_B, strict=True):
            best = np.lexsort((np.arange(12), -row_N)).tolist()
            found = [n for n in best if row_N[n] > 0 and not (same and n == own)][:k]
            expected.append(found + [-1] * (k - len(found)))
        ranked_BK = ranker.best_of_sparse(csr_array(score_BN), anchor_B, k, same_entity=same)
        assert ranked_BK.tolist() == expected
