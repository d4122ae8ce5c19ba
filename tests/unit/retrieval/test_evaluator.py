"""The evaluator against loops: slices, values per anchor in Parquet, JSON without NaN, anchors that nothing fits."""

import json
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.raw_shop import CLICKS, Rows, given, ids, make_schema, run, with_pairs
from tests.shop import prepared_debug_shop, shared_root
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.counting import co_occurrence, popularity
from torchrec_mt.retrieval.baselines.oracle import oracle
from torchrec_mt.retrieval.baselines.ranker import Ranker
from torchrec_mt.retrieval.evaluator import (
    EvaluateConfig,
    evaluate_task,
    evaluate_tasks,
    score,
    split_anchors,
    task_questions,
    terms,
)
from torchrec_mt.retrieval.lists import coverage, cross_category, diversity, novelty, popularity_lift
from torchrec_mt.retrieval.measures import measure
from torchrec_mt.retrieval.metrics import Relevant, ranking_metrics
from torchrec_mt.retrieval.records import ABOUT, records_path, writing_records
from torchrec_mt.retrieval.results import flips_for
from torchrec_mt.retrieval.slices import RARE, popularity_bands, slice_columns
from torchrec_mt.retrieval.uncertainty import bootstrap, compare, holm

METRICS = ("recall@10", "ndcg@100", "mrr@7", "precision@3", "map@20")
CONFIG = EvaluateConfig(max_anchors=120, metrics=METRICS, slices=("brand", "product.price"))
SYSTEMS = ("model", "popularity", "oracle")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepared_debug_shop(shared_root(tmp_path_factory))


def rankers(dataset: PreparedDataset, task: str) -> dict[str, Ranker]:
    made = (co_occurrence(dataset, task), popularity(dataset, task), oracle(dataset, task, "test"))
    return dict(zip(SYSTEMS, made, strict=True))


def answers(dataset: PreparedDataset, task: str, anchor_B: np.ndarray) -> list[dict[int, float]]:
    """Right answers of each anchor, and their grades."""
    pairs = dataset.pairs(task, "test")
    found: list[dict[int, float]] = []
    for anchor in anchor_B:
        mine = pairs["anchor"] == anchor
        found.append(dict(zip(pairs["candidate"][mine].tolist(), pairs["grade"][mine].tolist(), strict=True)))
    return found


def slow_values(ranked_BK: np.ndarray, right: list[dict[int, float]], metric: str) -> np.ndarray:
    """Values of the anchors that have a right answer, one anchor at a time."""
    values = []
    for row, known in zip(ranked_BK, right, strict=True):
        if known:
            items = np.array(sorted(known))
            one = Relevant(np.array([0, len(items)]), items, np.array([known[item] for item in items.tolist()]))
            values.append(ranking_metrics(row[None], one, [metric])[metric][0])
    return np.array(values)


def words_of(dataset: PreparedDataset, anchor_B: np.ndarray) -> list[str]:
    texts = pq.read_table(dataset.entity_path("query"), columns=["text__text"])["text__text"].to_pylist()
    return [["0", "1", "2", "3", "4+"][min(4, len(texts[anchor].split()))] for anchor in anchor_B]


@pytest.mark.parametrize("task", ["search", "complement"])
def test_slices_equal_a_slow_twin(dataset: PreparedDataset, task: str) -> None:
    result, _ = evaluate_task(dataset, task, rankers(dataset, task), CONFIG)
    anchor_B = split_anchors(dataset, task, CONFIG)
    right = answers(dataset, task, anchor_B)
    info = dataset.manifest.tasks[task]
    anchor_band = popularity_bands(dataset.anchor_frequencies(task))[anchor_B]
    target_band = popularity_bands(dataset.frequencies(task))
    trained = dataset.train_counts(info.candidate) > 0
    table = pq.read_table(dataset.entity_path(info.candidate), columns=["brand"])["brand"].to_pylist()
    brands = pq.read_table(dataset.vocabulary_path("brand"), columns=["value", "row"])
    brand_name = dict(zip(brands["row"].to_pylist(), brands["value"].to_pylist(), strict=True)) | {0: RARE}

    def by_anchor(keep: np.ndarray) -> list[dict[int, float]]:
        return [known if kept else {} for known, kept in zip(right, keep, strict=True)]

    def by_target(keep: np.ndarray) -> list[dict[int, float]]:
        return [{item: grade for item, grade in known.items() if keep[item]} for known in right]

    wanted = {("target_training", name): by_target(trained == kind) for name, kind in (("cold", False), ("warm", True))}
    for number, name in enumerate(("head", "torso", "tail")):
        wanted["anchor_popularity", name] = by_anchor(anchor_band == number)
        wanted["target_popularity", name] = by_target(target_band == number)
    if task == "search":
        words = np.array(words_of(dataset, anchor_B))
        wanted |= {("anchor_words", name): by_anchor(words == name) for name in set(words.tolist())}
    of_brand = [brand_name[bag[0]] for bag in table]
    slices = result.slices
    for name in slices["target_product_brand"]:
        if name != "(other)":
            wanted["target_product_brand", name] = by_target(np.array([brand == name for brand in of_brand]))
    assert len([key for key in wanted if key[0] == "target_product_brand"]) >= 8
    for system, ranker in rankers(dataset, task).items():
        ranked_BK = ranker(anchor_B, 100)
        for (slicing, label), known in wanted.items():
            asked = sum(map(bool, known))
            if not asked:
                assert label not in slices[slicing]
                continue
            part = slices[slicing][label]
            assert part.num_anchors == asked
            assert set(part.systems[system]) == set(METRICS[:4])
            for metric in METRICS[:4]:
                values = slow_values(ranked_BK, known, metric)
                assert part.systems[system][metric] == pytest.approx(values.mean()), (slicing, label, metric)
                interval = bootstrap({metric: values})[metric]
                assert part.intervals[system][metric] == pytest.approx((interval.low, interval.high), nan_ok=True)
    prices = slices["target_product_price"]
    assert [label[:2] for label in prices] == ["q1", "q2", "q3", "q4"]
    assert ("anchor_product_price" in slices) == (task == "complement")
    assert sum(part.num_anchors for part in slices["anchor_popularity"].values()) == result.num_anchors == len(anchor_B)


def test_parquet_and_json_hold_what_is_computed_again(dataset: PreparedDataset, tmp_path: Path) -> None:
    path = records_path(tmp_path / "metrics-test-120-anchors.json")
    assert path.name == "anchors-test-120-anchors.parquet"
    tasks = {task: rankers(dataset, task) for task in ("search", "complement")}
    about = terms(CONFIG, "best", dataset.manifest.digest)
    with writing_records(path, dataset, about, METRICS, slice_columns(dataset, CONFIG.slices)) as records:
        evaluation = evaluate_tasks(
            dataset, {task: partial(rankers, dataset, task) for task in tasks}, CONFIG, records=records
        )
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert json.loads(pq.read_schema(path).metadata[ABOUT]) == about
    table = pq.read_table(path).to_pandas()
    said = json.loads(json.dumps(evaluation.to_json("best", dataset.manifest.digest), allow_nan=False))
    assert (said["format"], said["dataset"]) == (2, dataset.manifest.digest)
    assert said["tasks"]["similar"]["num_anchors"] == 0
    category_N = pq.read_table(dataset.entity_path("product"), columns=["category"])["category"].to_pylist()
    category_N = np.array([bag[0] if bag and bag[0] else -1 for bag in category_N])
    p_values, p_holm = [], []
    for task, systems in tasks.items():
        anchor_B, info = split_anchors(dataset, task, CONFIG), dataset.manifest.tasks[task]
        right, names = answers(dataset, task, anchor_B), np.array(ids(dataset, info.anchor))
        found = {}
        for system, ranker in systems.items():
            rows = table[(table["task"] == task) & (table["system"] == system)]
            ranked_BK, told = ranker(anchor_B, 100), said["tasks"][task]
            assert rows["anchor"].tolist() == names[anchor_B].tolist()
            assert rows["relevant"].tolist() == list(map(len, right))
            count_N = dataset.frequencies(task)
            expected = {metric: slow_values(ranked_BK, right, metric) for metric in METRICS}
            expected |= {
                "novelty@10": novelty(ranked_BK, 10, count_N),
                "popularity_lift@10": popularity_lift(ranked_BK, 10, count_N),
                "diversity@10": diversity(ranked_BK, 10, category_N),
            }
            if task == "search":
                assert rows["cross_category@10"].isna().all()
                assert rows["anchor_product_category"].isna().all()
                assert told["lists"][system]["cross_category@10"] is None
                assert rows["anchor_words"].tolist() == words_of(dataset, anchor_B)
            else:
                expected["cross_category@10"] = cross_category(ranked_BK, 10, category_N, category_N[anchor_B])
            for name, value_B in expected.items():
                assert rows[name].to_numpy() == pytest.approx(value_B, nan_ok=True), (task, system, name)
                part = told["systems" if name in METRICS else "lists"][system]
                assert part[name] == pytest.approx(np.nanmean(value_B))
                interval = bootstrap({name: value_B})[name]
                assert told["intervals"][system][name] == pytest.approx([interval.low, interval.high])
            for k in (10, 100):
                assert told["lists"][system][f"coverage@{k}"] == coverage(ranked_BK, k, len(count_N))
            found[system] = expected
        for rival in SYSTEMS[1:]:
            for metric in METRICS[:4]:
                one = said["tasks"][task]["comparisons"][rival][metric]
                again = compare({metric: found["model"][metric]}, {metric: found[rival][metric]})[metric]
                assert one["difference"] == pytest.approx(again.difference.mean)
                assert (one["p_value"], one["effect_size"]) == pytest.approx((again.p_value, again.effect_size))
                p_values.append(one["p_value"])
                p_holm.append(one["p_holm"])
    assert p_holm == holm(p_values)
    assert len(p_holm) == 16


def test_a_failed_judgement_leaves_nothing(dataset: PreparedDataset, tmp_path: Path) -> None:
    path = tmp_path / "evaluation/anchors.parquet"
    with pytest.raises(KeyboardInterrupt), writing_records(path, dataset, {}, METRICS, []):
        raise KeyboardInterrupt
    assert not path.parent.exists()
    path.parent.mkdir()
    with pytest.raises(KeyboardInterrupt), writing_records(path, dataset, {}, METRICS, []):
        raise KeyboardInterrupt
    assert not list(path.parent.iterdir()), "the folder was there before"


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_chunks_change_nothing(dataset: PreparedDataset, chunk: int) -> None:
    config = EvaluateConfig(max_anchors=50)
    questions, ranker = task_questions(dataset, "similar", config), co_occurrence(dataset, "similar")
    whole, parts = (measure(questions, ranker, config.metrics, chunk=size) for size in (1000, chunk))
    assert parts.coverage == whole.coverage
    for one, other in ((parts.values, whole.values), (parts.lists, whole.lists)):
        assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in whole.values if name in one)
    for name, labels in whole.parts.items():
        for label, part in labels.items():
            assert part.asked_B.tolist() == parts.parts[name][label].asked_B.tolist()
            for metric, value_B in part.values.items():
                assert value_B.tolist() == parts.parts[name][label].values[metric].tolist()
    means = score(dataset, "similar", ranker, config)
    assert means == pytest.approx({name: value_B.mean() for name, value_B in whole.values.items()})


def test_progress_counts_all_anchors_of_all_systems(dataset: PreparedDataset) -> None:
    told: list[tuple[int, int]] = []
    config = EvaluateConfig(max_anchors=30)
    evaluate_task(dataset, "search", rankers(dataset, "search"), config, progress=lambda *said: told.append(said))
    assert told == [(30, 90), (60, 90), (90, 90)]


def test_a_tasks_rankers_are_made_in_its_turn_and_let_go(dataset: PreparedDataset) -> None:
    alive: list[list[str]] = []
    made: dict[str, weakref.ref[Ranker]] = {}

    def make(task: str) -> dict[str, Ranker]:
        alive.append([name for name, ranker in made.items() if ranker() is not None])
        systems = rankers(dataset, task)
        made[task] = weakref.ref(systems["model"])
        return systems

    tasks = list(dataset.manifest.tasks)
    evaluation = evaluate_tasks(dataset, {task: partial(make, task) for task in tasks}, EvaluateConfig(max_anchors=20))
    assert list(made) == tasks
    assert alive == [[]] * len(tasks), "those of an earlier task are still there"
    assert all(result.comparisons for result in evaluation.tasks.values())


def test_anchors_without_a_right_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    clicks: Rows = {**CLICKS, "grade": [1, 1, 1, 1, 1, 1, 1, 0], "time": [1, 2, 3, 4, 5, 6, 95, 96]}
    dataset = run(tmp_path, with_pairs(given(grade="grade", min_grade=0.0)), clicks=clicks)
    result, _ = evaluate_task(dataset, "search", {"model": popularity(dataset, "search")}, EvaluateConfig())
    assert (result.num_anchors, result.num_without_positives) == (1, 1)
    assert result.systems["model"]["hit_rate@10"] == 1.0
    assert result.comparisons == {}
    # None is left: no number, and no warning either.
    clicks["grade"][-2:] = [0, 0]
    dataset = run(tmp_path / "none", with_pairs(given(grade="grade", min_grade=0.0)), clicks=clicks)
    systems = {"model": popularity(dataset, "search"), "oracle": oracle(dataset, "search", "test")}
    with writing_records(tmp_path / "anchors.parquet", dataset, {}, EvaluateConfig().metrics, []) as records:
        said = evaluate_tasks(dataset, {"search": lambda: systems}, EvaluateConfig(), records=records).to_json("best")
    search = said["tasks"]["search"]
    assert (search["num_anchors"], search["num_without_positives"]) == (0, 2)
    assert set(search["systems"]["model"].values()) == {None}
    assert search["comparisons"]["oracle"]["recall@10"]["p_holm"] is None
    assert len(pq.read_table(tmp_path / "anchors.parquet")) == 0
    assert score(dataset, "search", systems["model"], EvaluateConfig())["recall@10"] == 0.0


def test_a_cut_off_beyond_the_catalogue(tmp_path: Path) -> None:
    dataset = run(tmp_path, make_schema())
    asked: list[int] = []

    def backwards(anchor_B: np.ndarray, k: int) -> np.ndarray:
        asked.append(k)
        return np.tile(np.arange(5)[::-1], (len(anchor_B), 1))

    config = EvaluateConfig(metrics=("recall@1000", "precision@1000", "recall@1"))
    result, _ = evaluate_task(dataset, "search", {"model": backwards}, config)
    assert asked == [5]
    assert result.systems["model"]["recall@1000"] == 1.0
    assert result.systems["model"]["precision@1000"] == pytest.approx(1 / 1000)


def test_many_comparisons_need_many_flips() -> None:
    assert [flips_for(number) for number in (0, 48, 468)] == [10_000, 10_000, 46_800]
