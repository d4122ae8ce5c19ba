"""A judgement says what it is of: in its file's name, in its JSON, above its table."""

from typing import Any

import pytest

from torchrec_mt.reporting.table import evaluation_table, judged_table
from torchrec_mt.retrieval.evaluator import EvaluateConfig, Evaluation, TaskResult
from torchrec_mt.retrieval.judged import judged_names
from torchrec_mt.retrieval.pools import PoolResult


@pytest.mark.parametrize(
    ("settings", "model", "name"),
    [
        ({}, "best", "metrics.json"),
        ({"baselines": ("oracle", "co_occurrence", "bm25", "popularity")}, "best", "metrics.json"),
        ({"split": "valid"}, "best", "metrics-valid.json"),
        ({}, "last", "metrics-test-last.json"),
        ({"max_anchors": 50}, "best", "metrics-test-50-anchors.json"),
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
    config = EvaluateConfig(split="valid", max_anchors=1200, baselines=("oracle",))
    said = Evaluation({"find": TaskResult(0, {}, {})}, config).to_json("last")
    assert said == {
        "split": "valid",
        "model": "last",
        "max_anchors": 1200,
        "baselines": ["oracle"],
        "tasks": {"find": {"num_anchors": 0, "systems": {}, "slices": {}}},
    }
    title = evaluation_table(said).title
    assert title == "valid split, last model, ranked over the whole catalogue, at most 1,200 anchors a task"
    assert judged_table(said) is None


def test_a_pool_is_shown_with_the_random_order_first() -> None:
    systems = {name: dict.fromkeys(judged_names(), value) for name, value in (("model", 0.5), ("random_order", 0.25))}
    pool = TaskResult(0, {}, {}, PoolResult(7, 1234, systems))
    said = Evaluation({"find": pool, "other": TaskResult(0, {}, {})}, EvaluateConfig()).to_json("best")
    assert said["tasks"]["find"]["judged"] == {"num_anchors": 7, "num_judged": 1234, "systems": systems}  # type: ignore[index]
    table = judged_table(said)
    assert table is not None
    first, second = (list(column.cells) for column in table.columns[:2])
    assert first == ["[bold]find[/] [dim]7 anchors, 1,234 judged pairs[/]", "  random_order", "  model"]
    assert second == ["", "0.2500", "0.5000"]
