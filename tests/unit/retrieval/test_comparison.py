"""Two runs with known differences, and pairs of runs that cannot be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mt.compare import main
from torchrec_mt.errors import exit_code_of
from torchrec_mt.retrieval.measures import LISTS
from torchrec_mt.retrieval.records import ABOUT
from torchrec_mt.retrieval.uncertainty import compare, holm

ANCHORS = [f"a{number}" for number in range(40)]
METRICS = ("recall@10", "mrr@10")
ABOUT_IT: dict[str, Any] = {
    "split": "test",
    "max_anchors": 0,
    "dataset": "0123abcd",
    "metrics": list(METRICS),
    "main_metrics": ["recall@10"],
}


def write(run: Path, tasks: dict[str, np.ndarray], *, anchors: list[str] = ANCHORS, **about: Any) -> str:
    """A run whose model has these values of recall@10, and their halves of mrr@10; its rival has none right."""
    (run / "evaluation").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    parts = []
    for task, value_B in tasks.items():
        for system, values in (("model", value_B), ("popularity", value_B * 0)):
            columns: dict[str, Any] = {
                "task": [task] * len(values),
                "system": [system] * len(values),
                "anchor": anchors,
                "relevant": [3] * len(values),
                "recall@10": values,
                "mrr@10": values / 2,
                **{name: pa.nulls(len(values), pa.float64()) for name in LISTS},
            }
            parts.append(pa.table(columns))
    table = pa.concat_tables(parts).replace_schema_metadata({ABOUT: json.dumps(ABOUT_IT | about)})
    pq.write_table(table, run / "evaluation/anchors.parquet")
    return str(run)


@pytest.fixture
def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"find": rng.random(40), "pair": rng.random(40)}


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert exit_code_of(lambda: main(arguments)) == 2
    output = capsys.readouterr()
    assert (output.out, output.err.count("\n")) == ("", 1)
    return output.err


def test_a_known_difference(tmp_path: Path, values: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    better = {"find": values["find"] + 0.25, "pair": values["pair"].copy()}
    better["pair"][:20] += 0.01
    better["pair"][20:] -= 0.01
    order = np.random.default_rng(1).permutation(40)  # the order of the anchors is nothing to rely on
    first = write(
        tmp_path / "a", {task: v[order] for task, v in better.items()}, anchors=[ANCHORS[i] for i in order.tolist()]
    )
    second = write(tmp_path / "b", values)
    assert main([first, second, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["first"], found["second"], found["num_comparisons"]) == (1, first, second, 2)
    find, pair = found["tasks"]["find"]["metrics"]["recall@10"], found["tasks"]["pair"]["metrics"]["recall@10"]
    assert found["tasks"]["find"]["num_anchors"] == 40
    assert find["first"] - find["second"] == pytest.approx(0.25)
    assert (find["difference"], find["low"], find["high"]) == pytest.approx((0.25, 0.25, 0.25), abs=1e-6)
    assert find["p_value"] == 1 / 10_001
    assert pair["difference"] == pytest.approx(0, abs=1e-12)
    assert pair["low"] < 0 < pair["high"]
    assert pair["p_value"] > 0.5
    assert [find["p_holm"], pair["p_holm"]] == holm([find["p_value"], pair["p_value"]])

    by_id = np.argsort(ANCHORS)
    again = compare({"x": better["pair"][by_id]}, {"x": values["pair"][by_id]})["x"]
    assert (pair["p_value"], pair["effect_size"]) == pytest.approx((again.p_value, again.effect_size))

    assert main([first, second, "--task", "find", "--metric", "mrr@10", "--metric", "novelty@10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["tasks"]) == ["find"]
    assert found["tasks"]["find"]["metrics"]["mrr@10"]["difference"] == pytest.approx(0.125)
    assert found["tasks"]["find"]["metrics"]["novelty@10"]["difference"] is None


def test_the_table_says_who_is_better(
    tmp_path: Path, values: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write(tmp_path / "a", {"find": values["find"]}), write(tmp_path / "b", {"find": values["find"] / 2})
    assert main([second, first]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "Recall@10" in line)
    mean = values["find"].mean()
    assert f"{mean / 2:.4f}"[1:] in row
    assert f" -{mean / 2:.4f}".replace("0.", ".", 1) in row
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"dataset": "ffff"}, "differ in their dataset digest (0123abcd and ffff): only what was judged on the same"),
        (
            {"split": "valid"},
            "(test and valid): only what was judged on the same can be compared; choose evaluate.split",
        ),
        ({"max_anchors": 7}, "differ in their max_anchors (0 and 7)"),
        ({"metrics": ["mrr@10"]}, "share none of recall@10: choose with --metric"),
    ],
)
def test_what_was_not_asked_alike(
    tmp_path: Path,
    values: dict[str, np.ndarray],
    capsys: pytest.CaptureFixture[str],
    about: dict[str, Any],
    message: str,
) -> None:
    runs = [write(tmp_path / "a", values), write(tmp_path / "b", values, **about)]
    assert message in said(runs, capsys)


def test_other_anchors(tmp_path: Path, values: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write(tmp_path / "a", values), write(tmp_path / "b", values, anchors=["z", *ANCHORS[1:]])]
    assert f"task 'find': anchor 'a0' has 3 right answers in '{runs[0]}' and 0 in '{runs[1]}'" in said(runs, capsys)


def test_no_such_task_or_metric(
    tmp_path: Path, values: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write(tmp_path / "a", values), write(tmp_path / "b", values)]
    assert "--task lose: not in both evaluations, which share find, pair" in said([*runs, "--task", "lose"], capsys)
    text = said([*runs, "--metric", "recall@5"], capsys)
    assert "--metric recall@5: not in both evaluations, which share recall@10, mrr@10, novelty@10" in text


def test_a_run_that_is_not_evaluated(
    tmp_path: Path, values: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write(tmp_path / "a", values), write(tmp_path / "b", values)
    file = Path(second) / "evaluation/anchors.parquet"
    for damage in (b"PAR1", b""):
        file.write_bytes(damage)
        text = said([first, second], capsys)
        assert f"'{file}' is damaged" in text
        assert f"run `torchrec-mt evaluate {second}`" in text
    table = pa.table({"task": ["find"], "system": ["model"]})
    for metadata in ({}, {ABOUT: "null"}, {ABOUT: '{"split": "test"}'}):
        pq.write_table(table.replace_schema_metadata(metadata), file)
        assert f"'{file}' is damaged" in said([first, second], capsys)
    file.unlink()
    text = said([first, second], capsys)
    assert f"'{second}' has no evaluation/anchors.parquet: run `torchrec-mt evaluate {second}` first" in text
    assert "is no run folder" in said([first, str(tmp_path)], capsys)


def test_another_judgement_than_the_default_one(
    tmp_path: Path, values: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (write(tmp_path / name, values, split="valid") for name in "ab")
    files = [
        Path(run, "evaluation/anchors.parquet").rename(f"{run}/evaluation/anchors-valid.parquet")
        for run in (first, second)
    ]
    text = said([first, second], capsys)
    assert "has no evaluation/anchors.parquet, but anchors-valid.parquet: give a file in place of the run" in text
    assert f"such as '{files[0]}'" in text
    assert main([*map(str, files), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["first"], found["split"]) == (str(files[0]), "valid")
    files[1].write_bytes(b"PAR1")
    assert "evaluate its run again" in said([str(file) for file in files], capsys)
