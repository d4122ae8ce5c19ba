"""Losses or gradients that are no numbers: the message says from where to go on, and what was kept is whole."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.faulty import no_gradient, no_number
from tests.jobs import STEPS, Job, newest, resumed, small, state_after


def test_going_on_after_it(debug_shop: Path, uninterrupted: Callable[[int], dict[str, Any]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*small(debug_shop, "checkpoint.every=3"), f"--output={run}"]
    ended = Job(tmp_path / "said", arguments, ranks=2, fault=partial(no_number, 8, 1)).wait(30)
    assert [one.code for one in ended] == [1, 1]
    for one in ended:
        assert one.error.startswith("error: the loss at step 8 is no finite number (")
        assert f"the newest checkpoint is '{run}/checkpoints/step-0000000006'" in one.error
        assert f"`torchrec-mt train --resume {run}` goes on from it" in one.error
    assert newest(run) == 6
    assert sorted(file.name for file in (run / "offending_batch").iterdir()) == ["rank-0.pt", "rank-1.pt"]
    resumed(tmp_path / "again", run, ranks=2)
    assert state_after(run, STEPS) == uninterrupted(2)


def test_no_checkpoint_of_a_step_whose_gradients_overflow(
    debug_shop: Path, uninterrupted: Callable[[int], dict[str, Any]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*small(debug_shop, "checkpoint.every=3"), f"--output={run}"]
    ended = Job(tmp_path / "said", arguments, ranks=2, fault=partial(no_gradient, 9)).wait(30)
    assert [one.code for one in ended] == [1, 1]
    for one in ended:
        assert one.error.startswith("error: the gradients of step 9 are no finite numbers, though its losses are")
        assert f"`torchrec-mt train --resume {run}` goes on from it" in one.error
    assert newest(run) == 6
    resumed(tmp_path / "again", run, ranks=2)
    assert state_after(run, STEPS) == uninterrupted(2)
