"""What samples.json holds, against loops over the data; vectors are made up."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.raw_shop import CLICKS, PRODUCTS, Rows, given, make_schema, run, with_pairs
from tests.shop import prepared_debug_shop, shared_root
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.counting import co_occurrence
from torchrec_mt.retrieval.baselines.ranker import Ranker
from torchrec_mt.retrieval.cosines import cosines_json
from torchrec_mt.retrieval.encode import CANDIDATES, Side, anchors_of
from torchrec_mt.retrieval.evaluator import EvaluateConfig, split_anchors
from torchrec_mt.retrieval.samples import PER_BAND, SHOWN, choose, encode_chosen, samples_json
from torchrec_mt.retrieval.shown import LONGEST, Label, labels_of
from torchrec_mt.retrieval.slices import BANDS, popularity_bands
from torchrec_mt.schema import Entity, IdFeature

CONFIG = EvaluateConfig()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepared_debug_shop(shared_root(tmp_path_factory))


@pytest.fixture(scope="module")
def rankers(dataset: PreparedDataset) -> dict[str, Ranker]:
    return {name: co_occurrence(dataset, name) for name in dataset.manifest.tasks}


def vectors(entity: str, row_M: np.ndarray, side: Side) -> np.ndarray:
    """Unit vectors that hang on the row, the entity and the side alone."""
    places = np.arange(1, 9) * (1 + len(entity) + len(side.task or ""))
    vector_MD = np.sin((row_M[:, None] + 1) * places).astype(np.float32)
    return vector_MD / np.linalg.norm(vector_MD, axis=1, keepdims=True)


def right_answers(dataset: PreparedDataset, task: str) -> dict[int, set[int]]:
    pairs, found = dataset.pairs(task, "test"), {}
    for anchor, candidate, grade in zip(pairs["anchor"], pairs["candidate"], pairs["grade"], strict=True):
        if grade > 0:
            found.setdefault(int(anchor), set()).add(int(candidate))
    return found


def made(dataset: PreparedDataset, rankers: dict[str, Ranker]) -> dict:
    chosen = choose(dataset, rankers, CONFIG)
    return samples_json(
        dataset, chosen, *encode_chosen(dataset, chosen, vectors, dict.fromkeys(chosen.tasks, CANDIDATES)), run="r"
    )


def test_lists_are_those_of_the_ranker_with_right_answers_marked(
    dataset: PreparedDataset, rankers: dict[str, Ranker]
) -> None:
    chosen = choose(dataset, rankers, CONFIG)
    titles = pq.read_table(dataset.entity_path("product"), columns=["title__text"])["title__text"].to_pylist()
    samples = made(dataset, rankers)
    told = {group["entity"]: group for group in samples["lists"]}
    assert {entity: group["tasks"] for entity, group in told.items()} == {
        "query": ["search"],
        "product": ["similar", "complement"],
    }
    for entity, group in told.items():
        for row, anchor in zip(chosen.shown[entity].tolist(), group["anchors"], strict=True):
            for task, found in anchor["lists"].items():
                right = right_answers(dataset, task)[row]
                expected = [one for one in rankers[task](np.array([row]), SHOWN)[0].tolist() if one >= 0]
                anchor_1D = vectors(entity, np.array([row]), anchors_of(task))
                cosines = (vectors("product", np.array(expected), CANDIDATES) @ anchor_1D.T)[:, 0]
                assert found["relevant"] == len(right)
                assert [answer["text"] for answer in found["answers"]] == [titles[one] for one in expected]
                assert [answer["right"] for answer in found["answers"]] == [one in right for one in expected]
                np.testing.assert_allclose([answer["cosine"] for answer in found["answers"]], cosines, atol=1e-4)


def test_shown_anchors_are_spread_and_shared_by_the_tasks_of_an_entity(
    dataset: PreparedDataset, rankers: dict[str, Ranker]
) -> None:
    chosen = choose(dataset, rankers, CONFIG)
    count_N = dataset.anchor_frequencies("similar") + dataset.anchor_frequencies("complement")
    shown = chosen.shown["product"]
    assert len(set(shown.tolist())) == len(shown) == 3 * PER_BAND
    np.testing.assert_array_equal(chosen.band["product"], popularity_bands(count_N)[shown])
    np.testing.assert_array_equal(np.bincount(chosen.band["product"]), [PER_BAND] * len(BANDS))
    both = set(right_answers(dataset, "similar")) & set(right_answers(dataset, "complement"))
    per_band = [len([row for row in both if popularity_bands(count_N)[row] == band]) for band in range(3)]
    assert sum(row in both for row in shown.tolist()) == sum(min(PER_BAND, found) for found in per_band)


def test_the_best_wrong_answer_is_the_first_that_is_not_right(
    dataset: PreparedDataset, rankers: dict[str, Ranker]
) -> None:
    task = choose(dataset, rankers, CONFIG).tasks["similar"]
    answers = right_answers(dataset, "similar")
    judged = [row for row in split_anchors(dataset, "similar", CONFIG).tolist() if row in answers]
    assert set(task.anchor_B.tolist()) <= set(judged)
    for at, anchor in enumerate(task.anchor_B.tolist()):
        ranked = rankers["similar"](np.array([anchor]), 100)[0].tolist()
        wrong = [row for row in ranked if row >= 0 and row not in answers[anchor]]
        assert task.wrong_B[at] == (wrong[0] if wrong else -1)
        mine = task.right_R[task.owner_R == at].tolist()
        assert len(set(mine)) == len(mine) == min(5, len(answers[anchor]))
        assert set(mine) <= answers[anchor]


def test_cosines_equal_loops() -> None:
    rng = np.random.default_rng(3)
    right_R, owner_R = rng.uniform(-1, 1, 50), np.sort(rng.integers(0, 9, 50))
    wrong_B, random_BN = rng.uniform(-1, 1, 9), rng.uniform(-1, 1, (9, 40))
    wrong_B[4] = np.nan
    found = cosines_json(right_R, owner_R, wrong_B, random_BN)
    pairs = [(cosine, wrong_B[owner]) for cosine, owner in zip(right_R, owner_R, strict=True) if owner != 4]
    assert found["above_wrong"] == pytest.approx(np.mean([cosine > wrong for cosine, wrong in pairs]))
    shares = [np.mean(random_BN[owner] < cosine) for cosine, owner in zip(right_R, owner_R, strict=True)]
    assert found["above_random"] == pytest.approx(np.mean(shares))
    assert {name: sum(counts) for name, counts in found["counts"].items()} == {"right": 50, "wrong": 8, "random": 360}
    assert found["low"] <= min(right_R.min(), random_BN.min())
    assert found["high"] >= max(right_R.max(), random_BN.max())


def test_lists_of_nothing_but_right_answers_have_no_wrong_one() -> None:
    found = cosines_json(np.array([0.5]), np.array([0]), np.array([np.nan]), np.array([[0.5, 0.5]]))
    assert found["above_wrong"] is None
    assert found["means"]["wrong"] is None
    assert found["low"] < found["high"]


def test_samples_repeat_and_are_json(dataset: PreparedDataset, rankers: dict[str, Ranker]) -> None:
    first, second = made(dataset, rankers), made(dataset, rankers)
    assert first["about"].pop("date")[:2] == second["about"].pop("date")[:2] == "20"
    assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)
    assert first["about"] == {
        "run": "r",
        "dataset": "debug",
        "entities": {name: info.count for name, info in dataset.manifest.entities.items()},
    }
    points = first["maps"]["product"]["points"]
    assert len(points) == min(2000, dataset.manifest.entities["product"].count)
    assert {0, 1000} <= {x for x, *_ in points} <= set(range(1001))


def test_a_task_in_which_nothing_is_right_has_no_samples(tmp_path: Path) -> None:
    clicks: Rows = {**CLICKS, "grade": [1, 1, 1, 1, 1, 1, 0, 0], "time": [1, 2, 3, 4, 5, 6, 95, 96]}
    dataset = run(tmp_path, with_pairs(given(grade="grade", min_grade=0.0)), clicks=clicks)
    samples = made(dataset, {"search": co_occurrence(dataset, "search")})
    assert [samples[part] for part in ("lists", "cosines", "maps")] == [[], {}, {}]


def test_a_shop_of_five_products_has_samples(tmp_path: Path) -> None:
    dataset = run(tmp_path, make_schema())
    names = [name for name, task in dataset.manifest.tasks.items() if task.pairs["test"]]
    samples = made(dataset, {name: co_occurrence(dataset, name) for name in names})
    assert {title for *_, title, _ in samples["maps"]["product"]["points"]} == set(PRODUCTS["title"])
    assert samples["maps"]["product"]["agreement"] is None, "no category"


def test_an_entity_without_text_is_told_by_its_id(tmp_path: Path) -> None:
    entity = Entity(path="products.parquet", id="sku", features={"key": IdFeature(kind="id", table="sku")})
    dataset = run(tmp_path, replace(make_schema(), entities={**make_schema().entities, "product": entity}))
    ids = pq.read_table(dataset.entity_path("product"), columns=["id"])["id"].to_pylist()
    assert labels_of(dataset, "product", np.array([2, 1])) == [Label(ids[2], None), Label(ids[1], None)]


def test_long_texts_are_cut(tmp_path: Path) -> None:
    titles = ["word " * 50, " \n", *PRODUCTS["title"][2:]]
    dataset = run(tmp_path, make_schema(), products={**PRODUCTS, "title": titles})
    rows = np.arange(len(titles))
    ids = pq.read_table(dataset.entity_path("product"), columns=["id"])["id"].to_pylist()
    told = {one: label.text for one, label in zip(ids, labels_of(dataset, "product", rows), strict=True)}
    assert told["a"] == ("word " * 50)[: LONGEST - 1] + "…"
    assert told["b"] == "b"


def test_labels_come_in_the_order_asked_for(dataset: PreparedDataset) -> None:
    rows = np.array([3, 0])
    texts = pq.read_table(dataset.entity_path("query"), columns=["text__text"])["text__text"].to_pylist()
    assert [label.text for label in labels_of(dataset, "query", rows)] == [texts[3], texts[0]]
    assert {label.category for label in labels_of(dataset, "query", rows)} == {None}
    assert all(label.category and len(label.text) <= LONGEST for label in labels_of(dataset, "product", rows))
