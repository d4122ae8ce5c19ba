"""prepare -> train -> evaluate on the debug shop: what it leaves, that it repeats bit by bit, and its golden losses."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.retrieval.baselines.names import BASELINES, DEFAULTS
from torchrec_mt.train import main as train

GOLDEN = Path("tests/golden/debug_losses.json")
TASKS = {"search", "similar", "complement"}
METRICS = {"recall@10", "recall@100", "ndcg@10", "mrr@10", "precision@10", "hit_rate@10", "map@10"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


def arguments(root: Path, *overrides: str) -> list[str]:
    return [*FILES, *(f"--set={override}" for override in [*debug_overrides(root), *overrides])]


def losses(run: Path) -> list[list[str]]:
    """The logged losses as hexadecimal floats: every bit."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[float.hex(line[f"loss/{task}"]) for task in sorted(TASKS)] for line in lines if line["kind"] == "train"]


def processor() -> str:
    """What the last bits depend on: the processor, by whose model libraries choose kernels, and its instructions."""
    import torch

    info = Path("/proc/cpuinfo").read_text()
    named = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in info.splitlines())}
    model = "-".join(named.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping"))
    return f"{platform.machine()} {model} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"


def answers(samples: dict[str, Any]) -> list[tuple[str, str, list[tuple[str, bool]]]]:
    """What samples.json shows: anchor, task, its answers and whether they are right."""
    return [
        (anchor["text"], task, [(answer["text"], answer["right"]) for answer in found["answers"]])
        for group in samples["lists"]
        for anchor in group["anchors"]
        for task, found in anchor["lists"].items()
    ]


def test_a_run_leaves_what_it_promises(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train([*arguments(root), "--output", str(run), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["steps"] == 60
    assert evaluate([str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = json.loads((run / "evaluation/metrics.json").read_text())
    assert printed == saved
    assert set(saved["tasks"]) == TASKS
    assert (saved["split"], saved["model"], saved["max_anchors"]) == ("test", "best", 0)
    for task in saved["tasks"].values():
        assert set(task["systems"]) == {"model", *DEFAULTS}
        assert all(set(scores) == METRICS for scores in task["systems"].values())
        assert task["systems"]["model"]["recall@100"] > task["systems"]["popularity"]["recall@100"]
    assert {path.name for path in (run / "evaluation").iterdir()} == {
        "metrics.json",
        "anchors.parquet",
        "samples.json",
        "report.html",
    }
    assert evaluate([str(run), "--json", "--baselines", "all"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert every == json.loads((run / "evaluation/metrics-test-all-baselines.json").read_text())
    for name, task in every["tasks"].items():
        assert set(task["systems"]) == {"model", *BASELINES}
        assert task["systems"]["model"] == saved["tasks"][name]["systems"]["model"]
        for rival in ("two_hops", "item_knn", "ease", "als", "bpr"):
            assert task["systems"][rival]["recall@100"] > task["systems"]["random"]["recall@100"]
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "environment.json", "plan.json", "metrics.jsonl", "tensorboard", "checkpoints"} <= names
    kept = [json.loads(file.read_text()) for file in (run / "checkpoints").glob("step-*/checkpoint.json")]
    assert {mark for commit in kept for mark in commit["marks"]} == {"best", "good-1", "last"}
    plan = json.loads((run / "plan.json").read_text())
    assert {table["name"] for table in plan["tables"]} == {"tokens", "product_id", "category", "brand"}

    again = tmp_path / "again"
    assert train([*arguments(root), "--output", str(again)]) == 0
    assert losses(again) == losses(run), "same seed, other bits"


def test_losses_are_golden(root: Path, tmp_path: Path, update_golden: bool) -> None:
    """Bit by bit on the kind of processor that the file was made on; elsewhere the last bits may differ."""
    run = tmp_path / "run"
    assert train([*arguments(root), "--output", str(run)]) == 0
    found = losses(run)
    if update_golden:
        GOLDEN.write_text(json.dumps({"processor": processor(), "losses": found}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    if golden["processor"] == processor():
        assert found == golden["losses"]
    for row, expected in zip(found, golden["losses"], strict=True):
        assert [*map(float.fromhex, row)] == pytest.approx([*map(float.fromhex, expected)], rel=1e-3)


def test_two_processes_under_torchrun(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, "-m", "torchrec_mt.train", *arguments(root, "trainer.steps=12"), "--output", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == 12
    # One process reads what two wrote.
    assert evaluate([str(run), "--json"]) == 0
    saved = (run / "evaluation/metrics.json").read_text()
    assert json.loads(saved)["tasks"]["search"]["systems"]["model"]["recall@100"] > 0
    # Two judge another split: one of them speaks, and the test figures stay.
    command = [*launch, "-m", "torchrec_mt.evaluate", str(run), "--json", "--set=evaluate.split=valid"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == json.loads((run / "evaluation/metrics-valid.json").read_text())
    assert json.loads(done.stdout)["split"] == "valid"
    assert (run / "evaluation/metrics.json").read_text() == saved
    # What the page shows hangs on no number of processes, but for the last bits of cosines.
    assert (run / "evaluation/report-valid.html").is_file()
    samples = json.loads((run / "evaluation/samples-valid.json").read_text())
    assert evaluate([str(run), "--set=evaluate.split=valid"]) == 0
    alone = json.loads((run / "evaluation/samples-valid.json").read_text())
    assert answers(samples) == answers(alone)
    for task, found in samples["cosines"].items():
        assert found["means"] == pytest.approx(alone["cosines"][task]["means"], abs=1e-6)
