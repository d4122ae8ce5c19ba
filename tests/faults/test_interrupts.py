"""Ctrl-C at any moment: exit code 130, one line, nothing half done."""

from pathlib import Path

import pytest

from tests.interrupts import interrupted_at, interrupted_when
from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.errors import exit_code_of
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.prepare import main as prepare
from torchrec_mt.train import main as train

START = [
    ("train", "torchrec_mt.config", 0.0),
    ("train", "numpy", 0.0),
    ("train", "torch", 0.3),
    ("train", "torchrec", 0.0),
    ("train", "torchrec_mt.training.job", 0.0),
    ("prepare", "torchrec_mt.errors", 0.05),
    ("prepare", "duckdb", 0.0),
    ("evaluate", "torchrec_mt.errors", 1.0),
    ("mine", "pyarrow", 0.0),
    ("doctor", "torchrec_mt.checkup", 0.0),
    ("cli", "torchrec_mt.cli", 0.0),
]


@pytest.mark.parametrize(("program", "module", "after"), START)
def test_while_a_program_starts(tmp_path: Path, program: str, module: str, after: float) -> None:
    done = interrupted_at(tmp_path, module, program, ["no-such-place"], after=after)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


def arguments(root: Path, *overrides: str) -> list[str]:
    return [*FILES, *(f"--set={override}" for override in [*debug_overrides(root), *overrides])]


def test_a_first_run_has_no_model_and_says_so(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = [*arguments(root, "trainer.steps=100000"), "--output", str(run)]
    done = interrupted_when(run / "metrics.jsonl", "train", command)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.stderr
    assert exit_code_of(lambda: evaluate([str(run)])) == 2
    assert "is marked 'best': train first" in capsys.readouterr().err


def test_a_run_that_was_to_replace_another_leaves_it(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train([*arguments(root, "trainer.steps=2"), "--output", str(run)]) == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    command = [*arguments(root, "trainer.steps=100000"), "--output", str(run), "--overwrite"]
    done = interrupted_when(tmp_path, "train", command, appears=".run.partial-*/metrics.jsonl")
    assert done.returncode == 130, done.stderr
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert [child.name for child in tmp_path.iterdir()] == ["run"]


def test_evaluate(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train([*arguments(root, "trainer.steps=2"), "--output", str(run)]) == 0
    (tmp_path / "hook").mkdir()
    # The baselines import it in the middle of the judging.
    done = interrupted_at(tmp_path / "hook", "bm25s", "evaluate", [str(run)])
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in done.stderr
    assert not (run / "evaluation").exists()


def test_doctor(tmp_path: Path) -> None:
    done = interrupted_at(tmp_path, "torchrec_mt.checkup", "doctor", [], after=0.3)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in done.stderr


def test_prepare_leaves_the_earlier_result(tmp_path: Path) -> None:
    place = ["--set=dataset.path=" + str(tmp_path / "shop"), "--set=dataset.source.events=15000"]
    assert prepare([*FILES, *place]) == 0
    before = (tmp_path / "shop/manifest.json").read_bytes()
    more = [*FILES, *place, "--set=dataset.source.events=400000", "--set=dataset.source.products=5000"]
    done = interrupted_when(tmp_path, "prepare", more, appears=".shop.partial-*")
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "shop/manifest.json").read_bytes() == before
    assert not list(tmp_path.glob(".shop.partial-*"))
