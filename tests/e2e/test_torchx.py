"""TorchX for real, on local_cwd: two ranks by our component and by plain dist.ddp, one process by `prepare`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root

TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_root(tmp_path_factory)
    prepared_debug_shop(folder)
    return folder


def torchx_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`torchx run -s local_cwd ARGUMENTS`, with .venv activated: TorchX calls `torchrun` and `python` by name."""
    environment = os.environ | {"PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
    command = [str(TOOLS / "torchx"), "run", "-s", "local_cwd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


def overrides(root: Path, *more: str) -> list[str]:
    return [f"--set={override}" for override in [*debug_overrides(root), *more]]


def test_components_prepare_and_train_on_two_ranks(root: Path, tmp_path: Path) -> None:
    files = ["--config", ",".join(FILES)]
    done = torchx_run("components/prepare.py:prepare", *files, "--", *overrides(root))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unchanged, nothing to do" in done.stderr  # of the job's own output, which TorchX shows there
    more = ["launch/overlays/cpu.toml", *overrides(root, "trainer.steps=12"), "--output", str(tmp_path / "run")]
    done = torchx_run("components/train.py:train", *files, "-j", "1x2", "--", *more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run/training.json").read_text())["steps"] == 12
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["dataset"]["name"], config["runtime"]["device"]) == ("debug", "cpu")
    plan = json.loads((tmp_path / "run/plan.json").read_text())
    ranks = {shard[0] for table in plan["tables"] for shard in table["shards"]}
    assert ranks == {0, 1}


def test_plain_ddp_trains_on_two_ranks(root: Path, tmp_path: Path) -> None:
    given = [*FILES, *overrides(root, "trainer.steps=12"), "--output", str(tmp_path / "run")]
    done = torchx_run("dist.ddp", "-j", "1x2", "-m", "torchrec_mt.train", "--", *given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run/training.json").read_text())["steps"] == 12


def test_a_mistake_of_the_user_fails_the_job_and_is_told(root: Path) -> None:
    done = torchx_run("components/evaluate.py:evaluate", "--run", str(root / "nowhere"))
    assert done.returncode == 1
    assert "is no run folder (no config.json in it)" in done.stderr
