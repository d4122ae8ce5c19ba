"""An experiment from its file to its results: cells that are kept, one that fails, one model per task beside it."""

import json
from pathlib import Path

import pytest

from tests.html_pages import read
from tests.shop import prepared_debug_shop, shared_root
from tests.small_grid import UNIFIED_TWINS_BROKEN, written_grid
from torchrec_mt.compare import main
from torchrec_mt.evaluate import main as evaluate


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = shared_root(tmp_path_factory)
    prepared_debug_shop(found)
    return found


def test_an_experiment(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = written_grid(root, tmp_path, UNIFIED_TWINS_BROKEN, "trainer.steps=6", "trainer.log_every=2")
    assert main([grid, "--json"]) == 1, "a cell failed"
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "out/results.json").read_text())
    assert found["tasks"].keys() == {"search", "similar", "complement"}
    for methods in found["tasks"].values():
        assert methods.keys() == {"unified", "twins"}
        assert methods["unified"]["metrics"]["recall@100"]["beside_reference"]["p_holm"] is not None
    assert [(one["method"], one["seed"]) for one in found["failed"]] == [("broken", 0)]
    assert "no finite number" in found["failed"][0]["why"]
    assert found["cost"]["twins"]["dense_parameters"] > found["cost"]["unified"]["dense_parameters"]
    assert (tmp_path / "out/results.md").read_text().startswith("# Is one model as good as three?")
    words = " ".join(read((tmp_path / "out/results.html").read_text(encoding="utf-8")).words)
    for said in ("Is one model as good as three?", "Failed: broken, seed 0.", "search and similar", "no finite number"):
        assert said in words, said
    assert found["curves"]["loss"]["search"].keys() == {"unified", "twins"}
    assert found["curves"]["cosine"]["search/similar"].keys() == {"unified"}, "a twin has one task"
    assert max(one["share"] for one in found["equal_time"]["methods"].values()) == 1, "the cheapest has all its steps"
    # What is there is kept: no run is trained or judged again.
    runs = [tmp_path / "out/unified/seed-0", tmp_path / "out/unified/seed-0/twins/search"]
    before = [(run / "metrics.jsonl").stat().st_mtime_ns for run in runs]
    judged = [(run / "evaluation").stat().st_mtime_ns for run in runs]
    assert main([grid, "--json", "--only", "unified"]) == 0
    output = capsys.readouterr()
    again = json.loads(output.out)
    assert "trained before, kept" in output.err
    assert [(run / "metrics.jsonl").stat().st_mtime_ns for run in runs] == before
    assert main([grid, "--json", "--only", "unified", "--only", "twins"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == found["tasks"]
    assert [(run / "evaluation").stat().st_mtime_ns for run in runs] == judged
    # But for what was judged by something else since, into the same file.
    ours = ["evaluate.baselines=[]", "evaluate.metrics=['ndcg@10']"]
    assert evaluate([str(runs[0]), "--json", *(f"--set={one}" for one in ours)]) == 0
    capsys.readouterr()
    assert main([grid, "--json", "--only", "unified", "--only", "twins"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == found["tasks"]
    unified = found["tasks"]["search"]["unified"]["metrics"]["recall@100"]
    assert again["tasks"]["search"]["unified"]["metrics"]["recall@100"]["mean"] == unified["mean"]
