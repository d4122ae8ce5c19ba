"""A twin's config by hand, which tasks get one, and the words of the table."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.tiny_run import tiny_config
from torchrec_mt.config import RunConfig, changed_keys, check_config, config_to_json
from torchrec_mt.errors import UserError
from torchrec_mt.reporting.comparison import better, twins_table
from torchrec_mt.workflows.twin_plan import twin_config, twin_tasks

OVERRIDES = (
    'reader.mixing={kind = "fixed", shares = {find = 1, alike = 2, goes_with = 1}}',
    'negatives.tasks={find = [{kind = "uniform", count = 4}], alike = [{kind = "in_batch"}]}',
    'loss.tasks={find = {kind = "bce"}, alike = {kind = "margin"}}',
    "model.temperatures={alike = {initial = 0.1}, goes_with = {initial = 0.2}}",
    "balancing.weights={find = 2.0, alike = 0.5}",
    'sharding.tables={tokens = "row_wise", kind = "data_parallel"}',
    'trainer.metric="goes_with/ndcg@10"',
    "trainer.patience=2",
    'checkpoint.folder="/elsewhere/run/"',
    "evaluate.slices=['kind']",
)


@pytest.fixture
def config() -> RunConfig:
    return tiny_config(Path("data"), *OVERRIDES)


def as_json(config: RunConfig) -> dict[str, Any]:
    return json.loads(config_to_json(config))


def test_a_twin_is_the_run_without_the_other_tasks(config: RunConfig) -> None:
    twin = twin_config(config, "alike", pairs=30, steps=12)
    changed = changed_keys(as_json(config), twin, but=())
    assert sorted(changed) == [
        "balancing.weights.alike",
        "balancing.weights.find",
        "checkpoint.folder",
        "evaluate.baselines",
        "evaluate.slices",
        "loss.tasks.find",
        "model.temperatures.goes_with",
        "negatives.tasks.find",
        "reader.batch_size",
        "reader.mixing.kind",
        "reader.mixing.shares",
        "trainer.metric",
        "trainer.tasks",
    ]
    assert (twin.trainer.tasks, twin.trainer.steps, twin.trainer.metric) == (("alike",), 12, "ndcg@10")
    assert (twin.trainer.patience, twin.runtime.seed, twin.reader.batch_size) == (2, config.runtime.seed, 30)
    assert (list(twin.loss.tasks), list(twin.negatives.tasks), list(twin.model.temperatures)) == (["alike"],) * 3
    assert twin.checkpoint.folder == "/elsewhere/run/twins/alike"
    assert twin.evaluate.baselines == ()
    assert twin_config(twin, "alike", pairs=30, steps=12).checkpoint.folder.endswith("/twins/alike/twins/alike")
    assert check_config(as_json(twin), where="twin") == twin, "what a run keeps of it gives it back"


def test_a_table_that_the_task_does_not_read_has_no_layout(config: RunConfig) -> None:
    assert list(twin_config(config, "alike", pairs=1, steps=1).sharding.tables) == ["tokens", "kind"]
    raw = asdict(config)
    del raw["dataset"]["entities"]["product"]["features"]["title"]
    narrow = check_config(raw, where="narrow")
    assert list(twin_config(narrow, "alike", pairs=1, steps=1).sharding.tables) == ["kind"]


def test_tasks(config: RunConfig) -> None:
    assert twin_tasks(config, None, "run") == ["find", "alike", "goes_with"]
    assert twin_tasks(config, " goes_with, find,", "run") == ["find", "goes_with"]
    with pytest.raises(UserError, match="--tasks find,seek: 'seek' is no trained task of 'run', one of find"):
        twin_tasks(config, "find,seek", "run")
    with pytest.raises(UserError, match="--tasks ',': names no task, give some of find, alike, goes_with"):
        twin_tasks(config, ",", "run")
    alone = twin_config(config, "find", pairs=1, steps=1)
    with pytest.raises(UserError, match="'run' is trained on one task, 'find': it is its own twin; give a run on sev"):
        twin_tasks(alone, None, "run")


def found(difference: float | None, low: float | None, high: float | None, p: float | None) -> dict[str, Any]:
    return {
        "unified": 0.5,
        "twin": 0.5 - (difference or 0),
        "difference": difference,
        "low": low,
        "high": high,
        "p_value": p,
        "p_holm": p,
        "effect_size": 0.1,
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (found(0.1, 0.05, 0.15, 0.01), "unified"),
        (found(-0.1, -0.15, -0.05, 0.01), "twin"),
        (found(-0.1, -0.15, 0.01, 0.01), "no difference"),
        (found(0.0, 0.0, 0.0, 1.0), "no difference"),
        (found(0.1, 0.0, 0.2, 0.04), "no difference"),
        (found(0.1, 0.01, 0.2, 0.05), "unclear"),
        (found(0.1, None, None, 1.0), "-"),
        (found(None, None, None, None), "-"),
    ],
)
def test_which_is_better(given: dict[str, Any], said: str) -> None:
    assert better(given) == said


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_and_says_so(width: int) -> None:
    metrics = {"recall@100": found(-0.0123, -0.02, 0.012, 0.3), "ndcg@10": found(0.2, 0.1, 0.3, 0.001)}
    task = {"num_anchors": 12_345, "metrics": metrics}
    report = {"split": "test", "num_comparisons": 4, "tasks": {"complementary": task, "find": task}}
    plain = Console(file=io.StringIO(), width=width)
    plain.print(twins_table(report))
    lines = plain.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "complementary (12,3…" in [line.strip() for line in lines]
    row = next(line for line in lines if "Recall@100" in line)
    assert len(row) <= 80
    assert " ".join(row.split()) == "Recall@100 .5000 .5123 -.0123 -.020 to +.012 .3000 no difference"
    assert next(line for line in lines if "NDCG@10" in line).split()[-1] == "unified"
