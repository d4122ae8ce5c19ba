"""Judged pools end to end: grades of 0 come through preparation, and the evaluator measures the task by them too."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.raw_shop import Rows, given, ids, make_schema, run
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval import pools
from torchrec_mt.retrieval.baselines.rankers import baseline_rankers
from torchrec_mt.retrieval.evaluator import EvaluateConfig, evaluate_tasks
from torchrec_mt.retrieval.judged import judged_names
from torchrec_mt.retrieval.pools import judge_pool, judged_pairs
from torchrec_mt.schema import Task

RATINGS: Rows = {
    "query": ["q1", "q1", "q1", "q2", "q2"],
    "sku": ["a", "c", "e", "d", "b"],
    "rating": [3, 0, 1, 0, 0],
}
CONFIG = EvaluateConfig(baselines=("popularity", "bm25", "oracle"))


def judged_dataset(tmp_path: Path, ratings: Rows = RATINGS, **settings: Any) -> PreparedDataset:
    """Search as ever, and ratings without a time as a second way to score it."""
    schema = make_schema()
    rated = given(path="ratings.parquet", time=None, grade="rating", **{"min_grade": 0.0, **settings})
    task = Task(anchor="query", candidate="product", pairs=rated, trained_as="search")
    return run(tmp_path, replace(schema, tasks={**schema.tasks, "rated": task}), ratings=ratings)


def results(dataset: PreparedDataset, config: EvaluateConfig = CONFIG) -> Any:
    names = [name for name, task in dataset.manifest.tasks.items() if task.pairs[config.split]]
    rankers = {name: partial(baseline_rankers, dataset, name, config) for name in names}
    return evaluate_tasks(dataset, rankers, config).to_json("best")["tasks"]


def test_judged_irrelevant_pairs_stand_in_the_test_split(tmp_path: Path) -> None:
    dataset = judged_dataset(tmp_path)
    assert dataset.manifest.tasks["rated"].pairs == {"train": 0, "valid": 0, "test": 5}
    assert dataset.manifest.tasks["rated"].rejected == {}
    queries, products = ids(dataset, "query"), ids(dataset, "product")
    judged = judged_pairs(np.arange(2), dataset.pairs("rated", "test"))
    owner = np.repeat(np.arange(2), np.diff(judged.offsets))
    found = {(queries[a], products[c]): grade for a, c, grade in zip(owner, judged.items, judged.grades, strict=True)}
    assert found == dict(zip(zip(RATINGS["query"], RATINGS["sku"], strict=True), RATINGS["rating"], strict=True))


def test_only_the_pool_is_measured_as_one_and_beside_the_usual_metrics(tmp_path: Path) -> None:
    said = results(judged_dataset(tmp_path))
    assert "judged" not in said["search"]
    block = said["rated"]["judged"]
    # q2 has nothing relevant. q1: a 3, e 1, c 0, of five products.
    assert (block["num_anchors"], block["num_judged"]) == (said["rated"]["num_anchors"], 3) == (1, 3)
    assert list(block["systems"]) == ["random_order", "popularity", "bm25", "oracle"]
    assert all(list(row) == list(judged_names()) for row in block["systems"].values())
    for system in ("popularity", "bm25", "oracle"):
        assert block["systems"][system]["ndcg@10"] == pytest.approx(said["rated"]["systems"][system]["ndcg@10"])
    assert block["systems"]["oracle"] == {
        "condensed_ndcg@10": 1,
        "ndcg@10": 1,
        "bpref": 1,
        "unjudged@10": 0,
    }
    # "hat": a and b hold the word, a is judged and b is not; e is not found.
    bm25 = block["systems"]["bm25"]
    assert (bm25["unjudged@10"], bm25["bpref"]) == (0.1, 0.5)
    assert block["systems"]["random_order"]["unjudged@10"] == pytest.approx(2 / 10)


def test_positive_judgements_alone_are_no_pool(tmp_path: Path) -> None:
    assert "judged" not in results(judged_dataset(tmp_path, min_grade=1.0))["rated"]


def test_a_pool_without_anything_relevant_is_none(tmp_path: Path) -> None:
    nothing = {**RATINGS, "rating": [0] * 5}
    assert "judged" not in results(judged_dataset(tmp_path, nothing))["rated"]


def test_a_few_anchors_at_a_time_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = judged_dataset(tmp_path, {**RATINGS, "rating": [3, 0, 1, 2, 0]})
    rankers = baseline_rankers(dataset, "rated", CONFIG)
    whole = judge_pool(dataset, "rated", "test", np.arange(2), rankers)
    monkeypatch.setattr(pools, "_PLACES_AT_ONCE", 1)
    assert judge_pool(dataset, "rated", "test", np.arange(2), rankers) == whole


def test_a_sample_of_the_anchors_is_judged_alone(tmp_path: Path) -> None:
    dataset = judged_dataset(tmp_path, {**RATINGS, "rating": [3, 0, 1, 2, 0]})
    block = results(dataset, replace(CONFIG, max_anchors=1))["rated"]["judged"]
    assert (block["num_anchors"], block["num_judged"]) in {(1, 3), (1, 2)}
