"""The watchdog: who is called stuck, when it bites, and that it leaves alone what only takes long elsewhere."""

import time

import torch
from torch._C._distributed_c10d import HashStore

from torchrec_mt.training.clock import StepClock
from torchrec_mt.training.watchdog import Told, Watchdog, said


def test_the_rank_furthest_behind_is_named() -> None:
    ranks = [Told(7, "copy", 31.0, 0.0), Told(7, "data", 33.0, 0.0), Told(7, "copy", 32.0, 0.0)]
    message = said(ranks, 30, rank=0)
    assert "rank 1 is stuck in phase 'data' of step 7 for 33 s" in message
    assert "rank 0 waits in 'copy' of step 7, rank 2 waits in 'copy' of step 7" in message


def test_an_earlier_step_is_behind_a_later_one() -> None:
    assert "rank 1 is stuck in phase 'optimizer'" in said(
        [Told(8, "data", 3, 0), Told(7, "optimizer", 2, 0)], 1, rank=0
    )


def test_the_log_of_a_step_comes_after_it() -> None:
    assert "rank 1 is stuck in phase 'optimizer' of step 7" in said(
        [Told(7, "log", 2, 0), Told(7, "optimizer", 2, 0)], 1, rank=0
    )


def test_without_the_others_a_rank_tells_of_itself() -> None:
    message = said([], 30, rank=3, own=Told(7, "data", 33.0, 0.0))
    assert "rank 3: training stands still: this rank is stuck in phase 'data' of step 7 for 33 s" in message


def test_a_rank_that_told_nothing_is_behind_all() -> None:
    assert "rank 1 is stuck before its first step" in said([Told(1, "data", 3, 0), None], 1, rank=0)


def watched(clock: StepClock, seconds: float, lasting: float) -> list[str]:
    heard: list[str] = []
    with Watchdog(lambda: clock.position, seconds=seconds, rank=0, world_size=1, store=HashStore(), end=heard.append):
        time.sleep(lasting)
    return heard


def test_it_ends_what_stands_still() -> None:
    clock = StepClock(torch.device("cpu"))
    clock.start(3)
    clock.mark("data")
    (message,) = watched(clock, 0.1, 1.0)
    assert "rank 0 is stuck in phase 'copy' of step 3" in message
    assert "trainer.stuck_seconds = 0.1" in message


def test_validations_may_take_long() -> None:
    clock = StepClock(torch.device("cpu"))
    clock.enter("validation", 3)
    assert watched(clock, 0.1, 0.6) == []
