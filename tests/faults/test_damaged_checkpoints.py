"""Damaged checkpoints: the newest whole one is used and it is said so; none is whole: one message, exit code 2."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import STEPS, checkpoints, state_after
from torchrec_mt.errors import exit_code_of
from torchrec_mt.evaluate import main as evaluate
from torchrec_mt.indexes import main as indexes
from torchrec_mt.mine import main as mine
from torchrec_mt.train import main as train

Damage = Callable[[Path], object]
PATTERNS = ("rank-00000.*", "tensors.*", "state.*", "checkpoint.json")


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.fixture
def run(whole_run: Callable[[int], Path], tmp_path: Path) -> Path:
    """A run with checkpoints of its last two steps."""
    copy = Path(shutil.copytree(whole_run(1), tmp_path / "run"))
    assert checkpoints(copy)[-2:] == [STEPS - 1, STEPS]
    return copy


def damage_all(run: Path, damage: Damage, pattern: str, folders: str = "step-*") -> None:
    files = list(run.glob(f"checkpoints/{folders}/{pattern}"))
    assert files
    for file in files:
        damage(file)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("damage", [cut, flipped])
def test_the_one_before_is_used(
    run: Path,
    uninterrupted: Callable[[int], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    pattern: str,
    damage: Damage,
) -> None:
    damage_all(run, damage, pattern, f"step-{STEPS:010}")
    assert exit_code_of(lambda: train(["--resume", str(run)])) == 0
    said = capsys.readouterr().err
    assert f"a newer checkpoint is not used: '{run}/checkpoints/step-{STEPS:010}/" in said
    assert f"goes on after step {STEPS - 1}, from {run}/checkpoints/step-{STEPS - 1:010}" in said
    assert state_after(run, STEPS) == uninterrupted(1)


@pytest.mark.parametrize("damage", [cut, flipped, Path.unlink])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_none_is_whole(run: Path, capsys: pytest.CaptureFixture[str], pattern: str, damage: Damage) -> None:
    damage_all(run, damage, pattern)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert exit_code_of(lambda: train(["--resume", str(run)])) == 2
    [line] = capsys.readouterr().err.splitlines()
    if pattern == "checkpoint.json" and damage is Path.unlink:
        assert line.startswith(f"error: no checkpoint in '{run / 'checkpoints'}' to go on from: train without --resume")
    else:
        assert line.startswith("error: no checkpoint ")
        assert " is whole" in line
        assert f"step-{STEPS:010}/" in line
        assert f"step-{STEPS - 1:010}/" in line
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("program", [evaluate, mine, indexes])
@pytest.mark.parametrize("damage", [cut, flipped, Path.unlink])
def test_a_model_to_be_judged(
    run: Path, capsys: pytest.CaptureFixture[str], program: Callable[[list[str]], int], damage: Damage
) -> None:
    """The one marked best, and no other in its place."""
    for pattern in PATTERNS[:-1]:
        damage_all(run, damage, pattern)
    assert exit_code_of(lambda: program([str(run)])) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith(f"error: '{run}/checkpoints/step-")
    assert line.endswith("this checkpoint is of no use any more; use an earlier one, or remove it")
    assert not (run / "evaluation").exists()
    assert not (run / "mined").exists()


@pytest.mark.parametrize("program", [evaluate, mine, indexes])
def test_no_model_to_be_judged(
    run: Path, capsys: pytest.CaptureFixture[str], program: Callable[[list[str]], int]
) -> None:
    shutil.rmtree(run / "checkpoints")
    assert exit_code_of(lambda: program([str(run)])) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    nowhere = f"error: no checkpoint under '{run / 'checkpoints'}' is marked 'best'"
    assert line == f"{nowhere}: train first, as far as a validation"


def test_nobody_knows_which_is_best(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage_all(run, cut, "checkpoint.json")
    assert exit_code_of(lambda: evaluate([str(run)])) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: no checkpoint under '{run / 'checkpoints'}' is marked 'best'; '{run}/checkpoints/")
    assert "checkpoint.json' is damaged" in line
