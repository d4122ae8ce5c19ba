"""Measured indexes: the flat one is exact, more work finds more, what is recommended reaches the wish."""

import itertools
import json
import math
from dataclasses import asdict

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mt.retrieval.index_grid import Structure, structures
from torchrec_mt.retrieval.indexes import (
    Measured,
    Point,
    Questions,
    built,
    measure,
    ranked,
    recommended,
    searching,
    share_found,
)
from torchrec_mt.retrieval.metrics import Relevant
from torchrec_mt.retrieval.topk import exact_topk

CANDIDATES, ANCHORS, WIDTH = 3000, 50, 16


def clustered(count: int, seed: int, width: int = WIDTH, spread: float = 0.6) -> np.ndarray:
    """Unit vectors around 40 centres, the same ones for every seed."""
    centres = np.random.default_rng(99).normal(size=(40, width))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(0, 40, count)] + spread * rng.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def relevant(rows_BK: np.ndarray) -> Relevant:
    """The given rows as right answers."""
    count, k = rows_BK.shape
    return Relevant(np.arange(count + 1) * k, np.sort(rows_BK, axis=1).ravel(), np.ones(count * k))


@pytest.fixture(scope="module")
def vector_ND() -> np.ndarray:
    return clustered(CANDIDATES, 0)


@pytest.fixture(scope="module")
def questions(vector_ND: np.ndarray) -> dict[str, Questions]:
    """A task whose anchors are candidates, and one whose anchors are not."""
    own = np.random.default_rng(5).permutation(CANDIDATES)[:ANCHORS]
    anchor_BD = vector_ND[own]
    truth = np.random.default_rng(6).permutation(CANDIDATES)[: 3 * ANCHORS].reshape(ANCHORS, 3)
    return {
        "inner": Questions(anchor_BD=anchor_BD, self_B=own, relevant=relevant(truth)),
        "outer": Questions(anchor_BD=clustered(ANCHORS, 7), self_B=None, relevant=relevant(truth)),
    }


@pytest.fixture(scope="module")
def measured(vector_ND: np.ndarray, questions: dict[str, Questions]) -> tuple[Measured, list[Measured]]:
    wanted, _ = structures(CANDIDATES, WIDTH)
    return measure(torch.from_numpy(vector_ND), questions, wanted, threads=1)


def test_the_flat_index_is_exact(vector_ND: np.ndarray, questions: dict[str, Questions]) -> None:
    index, _, size = built(Structure(factory="Flat"), vector_ND)
    assert 0 <= size - vector_ND.nbytes < 100
    for asked in questions.values():
        exclude_B = None if asked.self_B is None else torch.from_numpy(asked.self_B)
        _, rows_BK = exact_topk(
            torch.from_numpy(asked.anchor_BD), torch.from_numpy(vector_ND), 100, exclude_B=exclude_B
        )
        np.testing.assert_array_equal(ranked(searching(index, ""), asked, 100), rows_BK.numpy())


def test_exact_retrieval_and_the_flat_index_find_all(
    measured: tuple[Measured, list[Measured]], questions: dict[str, Questions]
) -> None:
    exact, (flat, *_) = measured
    assert (exact.factory, flat.factory) == ("exact", "Flat")
    for one in (exact, flat):
        assert set(one.tasks) == set(questions)
        assert all(point.recall_10 == point.recall_100 == 1.0 for point in one.tasks.values())
    for name in questions:
        assert flat.tasks[name].task_recall_100 == exact.tasks[name].task_recall_100
    # Right answers drawn at random: 100 of the 3,000 hold about a thirtieth of them.
    assert 0 < exact.tasks["outer"].task_recall_100 < 0.15


def test_more_work_finds_more(measured: tuple[Measured, list[Measured]]) -> None:
    """A longer list of probes, or of what is ranked again, holds the shorter one; HNSW's walks only tend to."""
    seen: dict[str, list[Measured]] = {}
    for one in measured[1]:
        if one.search and "," not in one.search:
            seen.setdefault(one.factory, []).append(one)
    assert {"IVF32,Flat", "HNSW16", "HNSW32", "PQ8x4fs,RFlat"} <= set(seen)
    for factory, settings in seen.items():
        for task in ("inner", "outer"):
            found = [one.tasks[task].recall_100 for one in settings]
            assert found[-1] > found[0], factory
            slack = 0.01 if "HNSW" in factory else 0.0
            assert all(later >= earlier - slack for earlier, later in itertools.pairwise(found)), factory


def test_every_setting_is_measured_in_full(measured: tuple[Measured, list[Measured]]) -> None:
    wanted, _ = structures(CANDIDATES, WIDTH)
    assert [(one.factory, one.search) for one in measured[1]] == [
        (one.factory, search) for one in wanted for search in one.searches
    ]
    for one in measured[1]:
        assert one.bytes > 0
        assert one.build_seconds >= 0
        for point in one.tasks.values():
            assert all(0 <= share <= 1 for share in (point.recall_10, point.recall_100, point.task_recall_100))
            assert math.isfinite(point.one_by_one + point.batch)
    exact, found = json.loads(json.dumps([asdict(measured[0]), [asdict(one) for one in measured[1]]]))
    assert exact["tasks"]["inner"]["recall_100"] == 1.0
    assert len(found) == len(measured[1])


@pytest.mark.parametrize("wish", [0.5, 0.9, 0.99, 1.0])
def test_what_is_recommended_reaches_the_wish(
    wish: float, measured: tuple[Measured, list[Measured]], vector_ND: np.ndarray, questions: dict[str, Questions]
) -> None:
    """Built and asked anew, by its words alone."""
    chosen = recommended(measured[1], dict.fromkeys(questions, wish))
    assert chosen is not None
    index = faiss.index_factory(WIDTH, chosen.factory, faiss.METRIC_INNER_PRODUCT)
    faiss.omp_set_num_threads(1)
    if chosen.build:
        faiss.ParameterSpace().set_index_parameters(index, chosen.build)
    index.train(vector_ND)
    index.add(vector_ND)
    if chosen.search:
        faiss.ParameterSpace().set_index_parameters(index, chosen.search)
    for asked in questions.values():
        score_BN = asked.anchor_BD.astype(np.float64) @ vector_ND.T.astype(np.float64)
        if asked.self_B is not None:
            score_BN[np.arange(ANCHORS), asked.self_B] = -np.inf
        best = np.argsort(-score_BN, axis=1, kind="stable")[:, :100]
        found = index.search(asked.anchor_BD, 101)[1]
        shares = []
        for b in range(ANCHORS):
            mine = [row for row in found[b] if asked.self_B is None or row != asked.self_B[b]][:100]
            shares.append(len(set(mine) & set(best[b])) / 100)
        # One more was asked for than at measuring where anchors are no candidates.
        assert np.mean(shares) >= wish - 0.005


def test_the_same_vectors_give_the_same_index() -> None:
    vectors = clustered(1500, 3)
    for one in structures(1500, WIDTH)[0]:
        first, second = (faiss.serialize_index(built(one, vectors)[0]) for _ in range(2))
        np.testing.assert_array_equal(first, second, err_msg=one.factory)


def setting(name: str, **points: tuple[float, float]) -> Measured:
    """A setting by (recall of 100, queries a second one by one) of each task."""
    tasks = {
        task: Point(recall_10=1.0, recall_100=recall, task_recall_100=0.5, one_by_one=rate, batch=1.0)
        for task, (recall, rate) in points.items()
    }
    return Measured(factory=name, build="", search="", bytes=1, build_seconds=0.0, tasks=tasks)


def test_recommended_by_hand() -> None:
    a = setting("a", search=(0.90, 100.0), similar=(0.99, 10.0))
    b = setting("b", search=(0.95, 50.0), similar=(0.95, 50.0))
    c = setting("c", search=(0.99, 40.0), similar=(0.97, 400.0))
    every = [a, b, c]
    assert recommended(every, {"search": 0.9}) is a
    assert recommended(every, {"search": 0.95}) is b, "as much as is wished is enough"
    assert recommended(every, {"search": 0.96}) is c
    assert recommended(every, {"search": 0.95, "similar": 0.95}) is c, "1/40 + 1/400 is less time than 2/50"
    assert recommended(every, {"search": 0.98, "similar": 0.98}) is None
    assert recommended(every, {"similar": 1.0}) is None
    assert recommended([], {"search": 0.5}) is None


@given(seed=st.integers(0, 1000), k=st.integers(1, 8))
def test_share_found_against_a_slow_twin(seed: int, k: int) -> None:
    """Whole numbers: ties are many, sums exact."""
    rng = np.random.default_rng(seed)
    anchor_BD = rng.integers(-2, 3, (5, 3)).astype(np.float32)
    candidate_ND = rng.integers(-2, 3, (12, 3)).astype(np.float32)
    _, best = exact_topk(torch.from_numpy(anchor_BD), torch.from_numpy(candidate_ND), k)
    rows_BK = np.stack([rng.permutation(12)[:k] for _ in range(5)])
    rows_BK[rng.random(rows_BK.shape) < 0.2] = -1
    shares = []
    for b in range(5):
        scores = candidate_ND @ anchor_BD[b]
        limit = sorted(scores)[-k]
        shares.append(sum(row >= 0 and scores[row] >= limit for row in rows_BK[b]) / k)
    assert share_found(rows_BK, best.numpy(), anchor_BD, candidate_ND) == pytest.approx(np.mean(shares))


def test_equal_vectors_stand_for_each_other() -> None:
    vectors = np.repeat(clustered(40, 1), 50, axis=0)
    asked = Questions(
        anchor_BD=vectors[::100].copy(), self_B=np.arange(0, 2000, 100), relevant=relevant(np.zeros((20, 1), int))
    )
    _, [flat] = measure(torch.from_numpy(vectors), {"t": asked}, [Structure(factory="Flat")], threads=1)
    assert flat.tasks["t"].recall_10 == flat.tasks["t"].recall_100 == 1.0


def test_few_candidates_and_nothing_right() -> None:
    """Fewer candidates than are asked for: all that there are count; anchors without right answers do not."""
    vectors = clustered(7, 2)
    nothing = Relevant(np.zeros(4, np.int64), np.zeros(0, np.int64), np.zeros(0))
    asked = Questions(anchor_BD=vectors[:3], self_B=np.arange(3), relevant=nothing)
    wanted, left_out = structures(7, WIDTH)
    assert [one.factory for one in wanted] == ["Flat", "SQ8", "HNSW16", "HNSW32"]
    assert left_out["IVF2,Flat"] == "needs 78 candidates to train on, not 7"
    exact, found = measure(torch.from_numpy(vectors), {"t": asked}, wanted, threads=1)
    for one in (exact, *found):
        assert one.tasks["t"].recall_100 == 1.0
        assert one.tasks["t"].task_recall_100 == 0.0


@pytest.mark.parametrize("candidates", [100, 624, 1300, 2500])
def test_faiss_has_nothing_to_warn_of(candidates: int, capfd: pytest.CaptureFixture[str]) -> None:
    vectors = clustered(candidates, 4, width=8)
    for one in structures(candidates, 8)[0]:
        built(one, vectors)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("candidates", [1, 2, 39, 1521, 9_984, 20_000, 1_000_000])
def test_lists_follow_the_root_and_what_trains_them(candidates: int) -> None:
    wanted, left_out = structures(candidates, 64)
    names = [one.factory for one in wanted] + list(left_out)
    assert len(names) == len(set(names)) == 12
    for name in names:
        if name.startswith("IVF"):
            lists = int(name[3:].partition(",")[0])
            assert lists <= 4 * math.sqrt(candidates) < 16 * lists
            assert name in left_out or candidates >= 39 * lists
    assert any("PQ16" in one.factory for one in wanted) == (candidates >= 9_984)
    for one in wanted:
        assert len(one.searches) == len(set(one.searches)) > 0


def test_product_quantisers_need_a_width_that_divides() -> None:
    assert structures(20_000, 30)[1] == {
        "PQ7": "needs a width that 4 divides, not 30",
        "IVF128,PQ7": "needs a width that 4 divides, not 30",
    }
    assert len(structures(20_000, 9)[1]) == 5


def test_progress_is_told(vector_ND: np.ndarray, questions: dict[str, Questions]) -> None:
    seen: list[tuple[str, int, int]] = []
    wanted = [Structure(factory="Flat"), Structure(factory="HNSW16", searches=("efSearch=16", "efSearch=32"))]
    some = {"outer": questions["outer"]}
    measure(torch.from_numpy(vector_ND), some, wanted, threads=1, progress=lambda *told: seen.append(told))
    assert [done for _, done, _ in seen] == [0, 0, 0, 1, 1, 2, 3]
    assert {total for _, _, total in seen} == {3}
    assert seen[5][0] == "HNSW16 efSearch=32"
