"""The debug shop, and what small trainings on it come to that nothing stopped."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import STEPS, Job, small, state_after
from tests.shop import prepared_debug_shop, shared_root


@pytest.fixture(scope="session")
def debug_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the prepared debug shop."""
    root = shared_root(tmp_path_factory)
    prepared_debug_shop(root)
    return root


@pytest.fixture(scope="session")
def whole_run(debug_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The run of some ranks that nothing stopped: made once, to be copied."""

    @cache
    def run(ranks: int) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        ended = Job(folder / "said", [*small(debug_shop), f"--output={folder / 'run'}"], ranks=ranks).wait()
        assert [one.code for one in ended] == [0] * ranks, [one.err for one in ended]
        return folder / "run"

    return run


@pytest.fixture(scope="session")
def uninterrupted(whole_run: Callable[[int], Path]) -> Callable[[int], dict[str, Any]]:
    """What such a run has at its end."""
    return lambda ranks: state_after(whole_run(ranks), STEPS)
