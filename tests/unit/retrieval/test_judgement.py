"""A judgement says what it is of: in its file's name, in its JSON, above its table."""

from typing import Any

import pytest

from torchrec_mt.config import load_config
from torchrec_mt.errors import UserError
from torchrec_mt.reporting.table import evaluation_table, judged_table
from torchrec_mt.retrieval.baselines.names import BASELINES
from torchrec_mt.retrieval.evaluator import EvaluateConfig, Evaluation
from torchrec_mt.retrieval.judged import judged_names
from torchrec_mt.retrieval.metrics import METRICS
from torchrec_mt.retrieval.pools import PoolResult
from torchrec_mt.retrieval.results import TaskResult


@pytest.mark.parametrize(
    ("settings", "model", "name"),
    [
        ({}, "best", "metrics.json"),
        ({"baselines": ("oracle", "two_hops", "co_occurrence", "bm25", "popularity")}, "best", "metrics.json"),
        ({"split": "valid"}, "best", "metrics-valid.json"),
        ({}, "last", "metrics-test-last.json"),
        ({"max_anchors": 50}, "best", "metrics-test-50-anchors.json"),
        ({"baselines": BASELINES}, "best", "metrics-test-all-baselines.json"),
        ({"baselines": ("oracle", "popularity")}, "best", "metrics-test-popularity-oracle.json"),
        (
            {"split": "valid", "max_anchors": 9, "baselines": ()},
            "last",
            "metrics-valid-last-9-anchors-no-baselines.json",
        ),
    ],
)
def test_only_the_default_judgement_is_called_metrics_json(settings: dict[str, Any], model: str, name: str) -> None:
    assert EvaluateConfig(**settings).file_name(model) == name


def test_a_judgement_says_what_it_is_of() -> None:
    config = EvaluateConfig(split="valid", max_anchors=1200, baselines=("oracle",), metrics=("recall@10",))
    said = Evaluation({"find": TaskResult(0, {})}, config).to_json("last", "abc")
    empty: dict[str, Any] = {"systems": {}, "intervals": {}, "lists": {}, "comparisons": {}, "slices": {}}
    assert said == {
        "format": 2,
        "split": "valid",
        "model": "last",
        "max_anchors": 1200,
        "baselines": ["oracle"],
        "metrics": ["recall@10"],
        "main_metrics": ["recall@10"],
        "slices": [],
        "dataset": "abc",
        "tasks": {"find": {"num_anchors": 0, "num_without_positives": 0, **empty}},
    }
    title = evaluation_table(said).title
    assert title == "valid split, last model, ranked over the whole catalogue, at most 1,200 anchors a task"
    assert not judged_table(said).row_count


def test_rivals_stand_before_the_model_and_what_needs_it_behind() -> None:
    systems = {name: dict.fromkeys(METRICS, 0.5) for name in ("model", *BASELINES)}
    said = Evaluation({"find": TaskResult(3, systems, {})}, EvaluateConfig(baselines=BASELINES)).to_json("best")
    names = [str(cell).strip() for cell in evaluation_table(said).columns[0].cells][1:]
    assert names == [*BASELINES[:-2], "model", "fusion", "oracle"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ('["recall@10", "recal@10"]', "evaluate.metrics: 'recal@10' is no metric: write recall | "),
        ('["recall@0"]', "evaluate.metrics: 'recall@0' is no metric"),
        ('["recall@1000000"]', "then @ and a cut-off from 1 to 999999"),
        ("[]", "evaluate.metrics = (): must be at least one metric"),
        ('["mrr@5", "mrr@5"]', "evaluate.metrics = ('mrr@5', 'mrr@5'): must be a list without repeats"),
    ],
)
def test_metrics_that_are_none(metrics: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(["launch/demo.toml"], [f"evaluate.metrics={metrics}"])
    assert message in str(caught.value)


def test_a_pool_is_shown_with_the_random_order_first() -> None:
    systems = {name: dict.fromkeys(judged_names(), value) for name, value in (("model", 0.5), ("random_order", 0.25))}
    pool = TaskResult(0, {}, judged=PoolResult(7, 1234, systems))
    said = Evaluation({"find": pool, "other": TaskResult(0, {})}, EvaluateConfig()).to_json("best")
    assert said["tasks"]["find"]["judged"] == {"num_anchors": 7, "num_judged": 1234, "systems": systems}
    table = judged_table(said)
    first, second = (list(column.cells) for column in table.columns[:2])
    assert first == ["[bold]find[/] [dim](7, 1,234)[/]", "  random_order", "  model"]
    assert second == ["", ".2500", ".5000"]
