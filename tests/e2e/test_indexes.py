"""train -> evaluate -> indexes on the debug shop: exact where evaluate is exact, JSON, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest

from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.errors import exit_code_of
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.indexes import main as indexes
from torchrec_mt.train import main as train

TASKS = ["search", "similar", "complement"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, judged and with its indexes measured."""
    root = shared_root(tmp_path_factory)
    prepared_debug_shop(root)
    path = tmp_path_factory.mktemp("indexes") / "run"
    overrides = [*debug_overrides(root), "trainer.steps=20", "trainer.validations=1", "evaluate.max_anchors=100"]
    assert train([*FILES, *(f"--set={override}" for override in overrides), "--output", str(path)]) == 0
    assert evaluate([str(path), "--baselines", "popularity"]) == 0
    assert indexes([str(path)]) == 0
    return path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_exact_retrieval_is_what_evaluate_judges(run: Path) -> None:
    report = json.loads((run / "evaluation/indexes.json").read_text())
    judged = json.loads((run / "evaluation/metrics-test-100-anchors-popularity.json").read_text())["tasks"]
    entity = report["entities"]["product"]
    assert list(entity["anchors"]) == list(entity["terms"]) == TASKS
    for terms in entity["terms"].values():
        assert (terms["split"], terms["max_anchors"], terms["wish"], terms["threads"]) == ("test", 100, 0.95, 1)
    flat = entity["settings"][0]
    for task in TASKS:
        own = judged[task]["systems"]["model"]["recall@100"]
        assert entity["exact"]["tasks"][task]["task_recall_100"] == own
        assert flat["tasks"][task]["task_recall_100"] == pytest.approx(own, abs=0.01)  # equal scores, other order
        assert flat["tasks"][task]["recall_100"] == 1.0
        chosen = entity["recommended_for"][task]
        [found] = [one for one in entity["settings"] if all(one[key] == value for key, value in chosen.items())]
        assert found["tasks"][task]["recall_100"] >= 0.95
    assert entity["left_out"], "the debug shop is small"


def test_one_task_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same vectors give the same indexes, so the same shares; only times differ. Other tasks stay in the file."""
    before = json.loads((run / "evaluation/indexes.json").read_text())["entities"]["product"]
    assert indexes([str(run), "--task", "search", "--wish", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    entity = told["entities"]["product"]
    assert list(entity["anchors"]) == ["search"]
    after = json.loads((run / "evaluation/indexes.json").read_text())["entities"]["product"]
    assert {task: terms["wish"] for task, terms in after["terms"].items()} == dict.fromkeys(TASKS, 0.95) | {"search": 1}
    for task, source in (("search", entity), ("similar", before), ("complement", before)):
        for place in ("anchors", "terms", "recommended_for"):
            assert after[place][task] == source[place][task]
        for one, other in zip(
            [after["exact"], *after["settings"]], [source["exact"], *source["settings"]], strict=True
        ):
            assert one["tasks"][task] == other["tasks"][task]
    shares = ("recall_10", "recall_100", "task_recall_100")
    for one, earlier in zip(entity["settings"], before["settings"], strict=True):
        assert (one["factory"], one["search"], one["bytes"]) == (
            earlier["factory"],
            earlier["search"],
            earlier["bytes"],
        )
        assert [one["tasks"]["search"][share] for share in shares] == [
            earlier["tasks"]["search"][share] for share in shares
        ]


def test_the_table_and_the_sentences(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert indexes([str(run), "--task", "complement", "--task", "search", "--set", "evaluate.max_anchors=30"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for start in ("product: ", "search 30", "complement 30", "left out: PQ16: ", "search: ", "all tasks of product: "):
        assert any(line.startswith(start) for line in out.splitlines()), start


@pytest.mark.parametrize("wish", ["0", "-0.5", "1.01", "nan", "inf"])
def test_a_wish_that_no_share_is(run: Path, capsys: pytest.CaptureFixture[str], wish: str) -> None:
    assert exit_code_of(lambda: indexes([str(run), f"--wish={wish}"])) == 2
    assert said(capsys) == f"error: --wish {wish}: must be a share above 0 and at most 1, such as 0.95\n"


def test_a_task_that_is_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: indexes([str(run), "--task", "search", "--task", "serach"])) == 2
    assert said(capsys) == (
        "error: --task serach: no task with pairs in the test split; one of search, similar, complement\n"
    )


def test_what_the_run_has_settled(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: indexes([str(run), "--set", "model.dim=8"])) == 2
    assert "the run has settled 'model.dim'" in said(capsys)


def test_what_is_no_run_or_has_no_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(lambda: indexes([str(tmp_path)])) == 2
    assert "is no run folder" in said(capsys)
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "evaluation"))
    assert exit_code_of(lambda: indexes([str(tmp_path / "run")])) == 2
    assert "no checkpoint under" in said(capsys)
    assert not (tmp_path / "run/evaluation").exists()


def test_a_damaged_file_is_told_before_anything_is_measured(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = shutil.copytree(run, tmp_path / "run") / "evaluation/indexes.json"
    for text in ("[]", "{"):
        file.write_text(text)
        assert exit_code_of(lambda: indexes([str(tmp_path / "run"), "--task", "search"])) == 2
        assert f"'{file}' is damaged" in (told := said(capsys))
        assert told.endswith(": remove it, and measure all tasks again\n")
