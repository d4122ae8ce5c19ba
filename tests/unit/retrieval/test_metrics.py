"""Metrics by hand, against a slow twin, and against trec_eval."""

import math
import tracemalloc

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mt.retrieval import metrics
from torchrec_mt.retrieval.metrics import (
    KINDS,
    METRICS,
    Metric,
    Relevant,
    depth_of,
    gains_of,
    parse_metric,
    ranking_metrics,
)

NAMES = [f"{kind}@{k}" for kind in KINDS for k in (1, 3, 10, 100)]


def relevant_of(rows: list[dict[int, float]]) -> Relevant:
    items = [sorted(row) for row in rows]
    return Relevant(
        np.concatenate([[0], np.cumsum([len(row) for row in items])]).astype(np.int64),
        np.array([item for row in items for item in row], np.int64),
        np.array([rows[n][item] for n, row in enumerate(items) for item in row], float),
    )


def padded(lists: list[list[int]], width: int) -> np.ndarray:
    return np.array([items + [-1] * (width - len(items)) for items in lists], np.int64).reshape(len(lists), width)


def test_by_hand() -> None:
    # Anchor 0: relevant 5 (grade 1), 7 (grade 3) and 9; found at ranks 1 and 3, 9 is missed. Anchor 1: nothing found.
    ranked = padded([[5, 1, 7, 2], [0, 3]], 4)
    relevant = relevant_of([{5: 1.0, 7: 3.0, 9: 1.0}, {4: 2.0}])
    names = ["recall@1", "recall@10", "precision@1", "precision@10", "hit_rate@10", "mrr@10", "map@1", "map@10"]
    values = ranking_metrics(ranked, relevant, [*names, "ndcg@2", "ndcg@10"])
    assert {name: values[name].tolist() for name in names} == {
        "recall@1": [1 / 3, 0],
        "recall@10": [2 / 3, 0],
        "precision@1": [1, 0],
        "precision@10": [2 / 10, 0],
        "hit_rate@10": [1, 0],
        "mrr@10": [1, 0],
        "map@1": [1 / 3, 0],
        "map@10": [pytest.approx((1 + 2 / 3) / 3), 0],
    }
    assert values["ndcg@2"] == pytest.approx([1 / (3 + 1 / math.log2(3)), 0])
    assert values["ndcg@10"] == pytest.approx([(1 + 3 / 2) / (3 + 1 / math.log2(3) + 1 / 2), 0])


def test_the_first_hit_counts_for_mrr_only_inside_the_cut() -> None:
    values = ranking_metrics(padded([[0, 1, 2, 3]], 4), relevant_of([{2: 1.0, 3: 1.0}]), ["mrr@2", "mrr@3", "mrr@99"])
    assert {name: value.tolist() for name, value in values.items()} == {
        "mrr@2": [0],
        "mrr@3": [1 / 3],
        "mrr@99": [1 / 3],
    }


def test_a_repeated_item_counts_once_and_keeps_its_place() -> None:
    # 7 again at rank 2 is worth nothing and takes the place that 5 would have had.
    values = ranking_metrics(
        padded([[7, 7, 5, 7]], 4), relevant_of([{5: 1.0, 7: 1.0}]), ["recall@4", "map@4", "ndcg@4"]
    )
    assert values["recall@4"].tolist() == [1]
    assert values["map@4"] == pytest.approx([(1 + 2 / 3) / 2])
    assert values["ndcg@4"] == pytest.approx([(1 + 1 / 2) / (1 + 1 / math.log2(3))])


def test_anchors_without_relevant_items_have_no_value() -> None:
    values = ranking_metrics(padded([[1], [1]], 1), relevant_of([{}, {1: 1.0}]), NAMES)
    assert all(np.isnan(value[0]) and value[1] > 0 for value in values.values())


@pytest.mark.parametrize("width", [0, 3])
def test_an_empty_list_finds_nothing(width: int) -> None:
    values = ranking_metrics(padded([[], []], width), relevant_of([{1: 1.0}, {}]), NAMES)
    assert all(value[0] == 0 and np.isnan(value[1]) for value in values.values())


def test_no_anchors_and_no_names() -> None:
    values = ranking_metrics(np.zeros((0, 5), np.int64), relevant_of([]), NAMES)
    assert list(values) == NAMES
    assert all(value.shape == (0,) for value in values.values())
    assert ranking_metrics(padded([[1]], 1), relevant_of([{1: 1.0}]), []) == {}


def test_gains_stand_where_the_items_stand() -> None:
    gains = gains_of(padded([[4, -1, 6, 4], [], [6]], 4), relevant_of([{4: 2.0, 6: 3.0}, {4: 1.0}, {6: 0.5}]))
    assert gains.tolist() == [[2, 0, 3, 0], [0, 0, 0, 0], [0.5, 0, 0, 0]]


def test_names_are_taken_apart() -> None:
    assert parse_metric("hit_rate@999999") == Metric("hit_rate", 999_999)
    assert depth_of(METRICS) == 100
    assert depth_of([]) == 0


NO_NAMES = """recall recall@ recall@0 recall@010 recall@-1 recall@1000000 recall@1.5 recall@１ Recall@10 auc@10 @1
task/recall@10"""


@pytest.mark.parametrize("name", [*NO_NAMES.split(), "", "recall@10 ", "recall@10\n"])
def test_a_name_that_is_none_is_told(name: str) -> None:
    with pytest.raises(ValueError, match=r"is no metric: write recall \| precision .*, such as 'recall@10'") as told:
        parse_metric(name)
    assert repr(name) in str(told.value)


def test_lists_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match=r"lists \[1, 1\] do not fit: one row for each of 2"):
        ranking_metrics(padded([[1]], 1), relevant_of([{}, {}]), ["recall@1"])


def slow_twin(ranked: list[int], relevant: dict[int, float], name: str) -> float:
    kind, k = parse_metric(name)
    if not relevant:
        return math.nan
    first = [item if item not in ranked[:rank] else -1 for rank, item in enumerate(ranked)][:k]
    found = [rank for rank, item in enumerate(first, 1) if item in relevant]
    gains = sorted(relevant.values(), reverse=True)[:k]
    match kind:
        case "recall":
            return len(found) / len(relevant)
        case "precision":
            return len(found) / k
        case "hit_rate":
            return float(bool(found))
        case "ndcg":
            dcg = sum(relevant[first[rank - 1]] / math.log2(1 + rank) for rank in found)
            return dcg / sum(gain / math.log2(1 + rank) for rank, gain in enumerate(gains, 1))
        case "mrr":
            return 1 / found[0] if found else 0.0
        case "map":
            return sum((n + 1) / rank for n, rank in enumerate(found)) / len(relevant)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(-1, 12), max_size=14),
            st.dictionaries(st.integers(0, 14), st.sampled_from([0.5, 1.0, 2.0, 3.0])),
        ),
        max_size=5,
    ),
    st.integers(1, 40),
)
def test_equal_the_slow_twin(cases: list[tuple[list[int], dict[int, float]]], places_at_once: int) -> None:
    """Repeats, gaps, empty lists, nothing relevant, and any cut into blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_PLACES_AT_ONCE", places_at_once)
        values = ranking_metrics(padded([r for r, _ in cases], 14), relevant_of([r for _, r in cases]), NAMES)
    for name in NAMES:
        assert values[name].tolist() == pytest.approx([slow_twin(*case, name) for case in cases], nan_ok=True), name


TREC = {"recall": "recall", "precision": "P", "hit_rate": "success", "ndcg": "ndcg_cut", "map": "map_cut"}


def trec_eval(ranked: list[int], relevant: dict[int, float], name: str) -> float:
    """The value of trec_eval, NIST's own program.

    Where its definition is another one, it is asked such that it must answer ours:
        order: trec_eval sorts by score and breaks ties by the item's name, we take the order as it comes. The scores
            given to it are the negative ranks, of which no two are equal.
        mrr: its recip_rank knows no cut-off. It sees the first K only.
        repeats: a run of its cannot hold an item twice. A repeat goes by another name, so it takes its place and is
            not relevant; so does an empty place between two items.
        nothing relevant: it says 0, and trec_eval's mean takes that in. Ours is NaN.
    Grades are whole numbers: it knows no others. The rest is equal by definition: precision divides by K also where
    the list is shorter, recall and map divide by all relevant items, also where these are more than K.
    """
    if not relevant:
        return math.nan
    kind, k = parse_metric(name)
    named = [str(item) if item >= 0 and item not in ranked[:n] else f"no {n}" for n, item in enumerate(ranked)]
    if kind == "mrr":
        named, measure = named[:k], "recip_rank"
    else:
        measure = f"{TREC[kind]}.{k}"
    judged = {"0": {str(item): int(grade) for item, grade in relevant.items()}}
    answer = pytrec_eval.RelevanceEvaluator(judged, {measure}).evaluate(
        {"0": {item: -float(rank) for rank, item in enumerate(named)}}
    )
    return float(answer["0"][measure.replace(".", "_")])


def agree(ranked: list[list[int]], relevant: list[dict[int, float]]) -> None:
    width = max(len(row) for row in ranked)
    values = ranking_metrics(padded(ranked, width), relevant_of(relevant), NAMES)
    for name in NAMES:
        expected = [trec_eval(row, wanted, name) for row, wanted in zip(ranked, relevant, strict=True)]
        assert values[name].tolist() == pytest.approx(expected, rel=0, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize(
    ("ranked", "relevant"),
    [
        pytest.param([], {1: 1.0}, id="empty list"),
        pytest.param([1], {1: 3.0}, id="shorter than every cut-off but one"),
        pytest.param([5, 6], {1: 3.0, 2: 1.0}, id="nothing found"),
        pytest.param([1, 2, 3, 4], {}, id="nothing relevant"),
        pytest.param([1, 1, 2, 1, 2], {1: 2.0, 2: 1.0}, id="repeats"),
        pytest.param([-1, 2, -1, 1], {1: 2.0, 2: 1.0}, id="empty places"),
        pytest.param([-1, -1], {1: 2.0}, id="empty places only"),
        pytest.param(list(range(30)), {n: 1.0 + n % 3 for n in range(0, 300, 2)}, id="more relevant than places"),
        pytest.param(list(range(200)), {150: 1.0}, id="found beyond every cut-off"),
        pytest.param(list(range(120)), {9: 1.0, 10: 2.0, 99: 3.0, 100: 1.0}, id="found beside the cut-offs"),
        pytest.param([3, 2, 1], {1: 3.0, 2: 2.0, 3: 1.0}, id="worst order of grades"),
        pytest.param([10, 9, 1, 2], {10: 1.0, 9: 1.0, 1: 1.0}, id="order of names is not the order"),
    ],
)
def test_agree_with_trec_eval_where_it_is_hard(ranked: list[int], relevant: dict[int, float]) -> None:
    agree([ranked or [-1]], [relevant])


def test_agree_with_trec_eval_on_random_runs() -> None:
    rng = np.random.default_rng(0)
    ranked = [rng.integers(-1, 300, rng.integers(0, 150)).tolist() for _ in range(60)]
    relevant = [
        {int(item): float(rng.integers(1, 5)) for item in rng.choice(300, rng.integers(0, 40), replace=False)}
        for _ in ranked
    ]
    agree(ranked, relevant)


def test_memory_stays_small() -> None:
    rng = np.random.default_rng(0)
    ranked = rng.integers(0, 100_000, (4000, 1000))
    relevant = relevant_of([{int(row[3]): 1.0} for row in ranked])
    tracemalloc.start()
    values = ranking_metrics(ranked, relevant, ["recall@1000", "ndcg@1000", "map@1000"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert values["recall@1000"].tolist() == [1] * 4000
    assert peak < ranked.nbytes  # a single array of all places, such as their gains, would be as large
