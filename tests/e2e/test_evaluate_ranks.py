"""`evaluate` on one rank, on three, and with vectors on disk: the same bits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.shop import FILES, debug_overrides, prepared_debug_shop, shared_root
from torchrec_mt.train import main as train

TERMS = ("sharding.default=table_wise", "runtime.threads=1", 'evaluate.baselines=["popularity"]')
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = shared_root(tmp_path_factory)
    prepared_debug_shop(root)
    path = tmp_path_factory.mktemp("ranks") / "run"
    overrides = [*debug_overrides(root), "trainer.steps=30", "runtime.threads=1"]
    assert train([*FILES, *(f"--set={override}" for override in overrides), "--output", str(path)]) == 0
    return path


def judged(run: Path, ranks: int, *overrides: str) -> dict[str, Any]:
    """What `evaluate` says on that many ranks, tables whole on some rank."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    command += ["-m", "torchrec_mt.evaluate", str(run), "--json"]
    for override in (*TERMS, *overrides):
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def test_ranks_and_files_change_no_bit(run: Path) -> None:
    alone = judged(run, 1)
    assert judged(run, 3) == alone
    assert judged(run, 2, "evaluate.vectors=disk") == alone
    assert not [file for file in (run / "evaluation").iterdir() if "tmp" in file.name]
