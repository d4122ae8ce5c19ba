"""The debug shop, prepared once and shared by the tests of a session (by all workers of a parallel one)."""

import fcntl
from pathlib import Path

import pytest

from torchrec_mt.config import RunConfig, load_config
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.prepare import prepare_dataset

FILES = ("launch/demo.toml", "launch/debug.toml")


def debug_overrides(root: Path) -> list[str]:
    """What puts the debug shop into a folder of the tests."""
    return [f"dataset.path={root / 'debug'}", "runtime.threads=1"]


def debug_config(root: Path, *overrides: str) -> RunConfig:
    return load_config(FILES, [*debug_overrides(root), *overrides])


def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of a test session."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


def prepared_debug_shop(root: Path) -> PreparedDataset:
    """Prepares the debug shop; whoever comes second waits and finds it done."""
    with (root / "debug.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return prepare_dataset(debug_config(root)).dataset
