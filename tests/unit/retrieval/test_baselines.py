"""Rivals and the oracle on the debug shop, each against a slow twin or its own promise."""

from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.shop import prepared_debug_shop, shared_root
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines import bm25, co_occurrence, entity_texts, oracle, popularity
from torchrec_mt.retrieval.evaluator import EvaluateConfig, baseline_rankers, evaluate_task, split_anchors


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepared_debug_shop(shared_root(tmp_path_factory))


def test_popularity_is_the_most_frequent_without_the_anchor(dataset: PreparedDataset) -> None:
    counts = Counter(dataset.pairs("similar", "train")["candidate"].tolist())
    order = sorted(range(len(dataset.frequencies("similar"))), key=lambda row: (-counts[row], row))
    anchor = order[2]
    ranked = popularity(dataset, "similar")(np.array([anchor]), 10)
    assert ranked[0].tolist() == [row for row in order[:11] if row != anchor]


@pytest.mark.parametrize("task", ["search", "similar", "complement"])
def test_co_occurrence_equals_a_slow_twin(dataset: PreparedDataset, task: str) -> None:
    pairs, frequency = dataset.pairs(task, "train"), dataset.frequencies(task)
    anchors = split_anchors(dataset, task, EvaluateConfig(max_anchors=30))
    ranked = co_occurrence(dataset, task)(anchors, 100)
    for number, anchor in enumerate(anchors):
        mine = pairs["anchor"] == anchor
        known = dict(zip(pairs["candidate"][mine].tolist(), pairs["count"][mine].tolist(), strict=True))
        first = sorted(known, key=lambda row: (-known[row], -frequency[row], row))
        rest = [
            row for row in sorted(range(len(frequency)), key=lambda row: (-frequency[row], row)) if row not in known
        ]
        expected = [row for row in first + rest if task == "search" or row != anchor][:100]
        assert ranked[number].tolist() == expected


def test_bm25_finds_a_product_by_its_own_title(dataset: PreparedDataset) -> None:
    ranker = bm25(dataset, "similar")
    assert ranker is not None
    anchors = np.arange(40)
    ranked = ranker(anchors, 100)
    assert not (ranked == anchors[:, None]).any()
    texts = entity_texts(dataset, "product")
    assert texts is not None
    words = [set(text.split()) for text in texts]
    assert all(words[anchor] & words[ranked[anchor, 0]] for anchor in anchors if ranked[anchor, 0] >= 0)


def test_texts_hold_title_and_categories(dataset: PreparedDataset) -> None:
    texts = entity_texts(dataset, "product")
    assert texts is not None
    title = pq.read_table(dataset.entity_path("product"), columns=["title__text"])["title__text"].to_pylist()
    assert all(text.startswith(start) and len(text) > len(start) for text, start in zip(texts, title, strict=True))


def test_oracle_ranks_by_the_truth_and_no_ranking_beats_it_by_much(dataset: PreparedDataset) -> None:
    truth = pq.read_table(dataset.truth_path("search")).to_pandas()
    anchors = split_anchors(dataset, "search", EvaluateConfig(max_anchors=20))
    ranked = oracle(dataset, "search", "test")(anchors, 50)
    for number, anchor in enumerate(anchors):
        mine = truth[truth.anchor == anchor].sort_values(["score", "candidate"], ascending=[False, True])
        assert ranked[number].tolist()[: len(mine)] == mine.candidate.tolist()[:50]


def test_slices_part_the_pairs(dataset: PreparedDataset) -> None:
    config = EvaluateConfig()
    result = evaluate_task(dataset, "similar", baseline_rankers(dataset, "similar", config), config)
    assert set(result.systems) == {"popularity", "bm25", "co_occurrence", "oracle"}
    assert result.num_anchors == len(np.unique(dataset.pairs("similar", "test")["anchor"]))
    assert 0 < result.slices["cold"].num_anchors < result.num_anchors
    assert result.slices["cold"].systems["popularity"]["recall@100"] < result.systems["oracle"]["recall@100"]
    for part in (result, *result.slices.values()):
        assert all(0 <= value <= 1 for scores in part.systems.values() for value in scores.values())


def test_a_sample_of_anchors_is_fixed_and_small(dataset: PreparedDataset) -> None:
    config = EvaluateConfig(max_anchors=25)
    first, second = split_anchors(dataset, "similar", config), split_anchors(dataset, "similar", config)
    assert len(first) == 25
    assert first.tolist() == sorted(second.tolist())
