"""Rivals and the oracle on the debug shop, each against a slow twin or its own promise."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.raw_shop import PRODUCTS, Rows, groups, ids, pairs, run, with_pairs
from tests.shop import prepared_debug_shop, shared_root
from torchrec_mt.data.dataset import PreparedDataset, Split
from torchrec_mt.retrieval.baselines.counting import co_occurrence, popularity
from torchrec_mt.retrieval.baselines.oracle import oracle
from torchrec_mt.retrieval.baselines.rankers import baseline_rankers
from torchrec_mt.retrieval.evaluator import (
    EvaluateConfig,
    evaluate_task,
    split_anchors,
)
from torchrec_mt.retrieval.metrics import METRICS
from torchrec_mt.schema import Task


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


def test_a_task_trained_as_another_is_counted_in_its_own_pairs(tmp_path: Path) -> None:
    """Baskets, all pairs of them, judged beside those of one kind: `together` trains on two pairs, `raw` holds more."""
    baskets: Rows = {
        "basket": ["1", "1", "2", "2", "3", "3", "4", "4", "8", "8", "9", "9"],
        "sku": ["a", "b", "c", "e", "c", "e", "a", "e", "a", "b", "d", "e"],
        "time": [1, 1, 2, 2, 3, 3, 4, 4, 60, 60, 95, 95],
    }
    schema = with_pairs(groups(same="kind"))
    raw = Task(anchor="product", candidate="product", pairs=groups(), trained_as="together")
    schema = replace(schema, tasks={**schema.tasks, "raw": raw})
    dataset = run(tmp_path, schema, products=PRODUCTS, baskets=baskets)
    names = np.array([*ids(dataset, "product"), "-"])
    row = {name: number for number, name in enumerate(names)}
    assert pairs(dataset, "together") == {("a", "b"): 1, ("b", "a"): 1}
    # Own pairs: (c, e) twice, (a, b) and (a, e) once. As candidates: e and a are in two, b and c in one, d in none.
    anchors = np.array([row["e"], row["d"]])
    first = names[co_occurrence(dataset, "raw")(anchors, 4)]
    assert first[0, :2].tolist() == ["c", "a"]
    assert set(first[1, :2]) == {"a", "e"}
    assert set(names[popularity(dataset, "raw")(anchors, 2)][1]) == {"a", "e"}
    # In the pairs of `together` e stands in none: it would come behind a and b.
    assert set(names[popularity(dataset, "together")(anchors, 2)][1]) == {"a", "b"}


def test_oracle_ranks_by_the_truth(dataset: PreparedDataset) -> None:
    truth = pq.read_table(dataset.truth_path("search")).to_pandas()
    anchors = split_anchors(dataset, "search", EvaluateConfig(max_anchors=20))
    ranked = oracle(dataset, "search", "test")(anchors, 50)
    for number, anchor in enumerate(anchors):
        mine = truth[truth.anchor == anchor].sort_values(["score", "candidate"], ascending=[False, True])
        assert ranked[number].tolist()[: len(mine)] == mine.candidate.tolist()[:50]


def test_oracle_of_the_validation_split_ranks_its_own_pairs(dataset: PreparedDataset) -> None:
    """The truth is that of the test period."""
    found = dataset.pairs("search", "valid")
    anchors = np.unique(found["anchor"])
    ranked = oracle(dataset, "search", "valid")(anchors, 100)
    for number, anchor in enumerate(anchors):
        mine = sorted(found["candidate"][found["anchor"] == anchor].tolist())[:100]
        assert ranked[number].tolist() == mine + [-1] * (100 - len(mine))


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("task", ["search", "similar", "complement"])
def test_no_rival_passes_the_oracle(dataset: PreparedDataset, task: str, split: Split) -> None:
    config = EvaluateConfig(split=split)
    systems = evaluate_task(dataset, task, baseline_rankers(dataset, task, config), config)[0].systems
    best = systems.pop("oracle")
    assert set(systems) == {"popularity", "bm25", "co_occurrence", "two_hops"}
    for rival, scores in systems.items():
        assert all(scores[metric] < best[metric] for metric in METRICS), (rival, scores, best)
    if split == "valid":  # the split's own pairs: nothing is missed but what does not fit into K
        assert best["ndcg@10"] == best["mrr@10"] == 1.0


def test_slices_part_the_pairs(dataset: PreparedDataset) -> None:
    config = EvaluateConfig()
    result, _ = evaluate_task(dataset, "similar", baseline_rankers(dataset, "similar", config), config)
    assert set(result.systems) == {"popularity", "bm25", "co_occurrence", "two_hops", "oracle"}
    assert result.num_anchors == len(np.unique(dataset.pairs("similar", "test")["anchor"]))
    training = result.slices["target_training"]
    assert 0 < training["cold"].num_anchors < result.num_anchors
    assert training["cold"].systems["popularity"]["recall@100"] < result.systems["oracle"]["recall@100"]
    for part in (result, *training.values()):
        assert all(0 <= value <= 1 for scores in part.systems.values() for value in scores.values())


def test_a_sample_of_anchors_is_fixed_and_small(dataset: PreparedDataset) -> None:
    config = EvaluateConfig(max_anchors=25)
    first, second = split_anchors(dataset, "similar", config), split_anchors(dataset, "similar", config)
    assert len(first) == 25
    assert first.tolist() == sorted(second.tolist())
