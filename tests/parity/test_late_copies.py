"""Saves whose copy of the tables ends in the middle of the next step hold the bits of saves that training waits for.

Every copy of tables is held up for longer than a step takes, in runs that save after every step: without the wait
before tables change, each checkpoint would hold the tables of a later step.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.ranks import run_on_ranks
from tests.tiny_run import here, kept, logged, tiny_config, write_tiny_dataset
from torchrec_mt.distributed.pipeline import InputPipeline
from torchrec_mt.train import train_here
from torchrec_mt.training.checkpoints.staging import Copy, Staging
from torchrec_mt.training.step import Steps

# One group of processes trains all cases.
pytestmark = pytest.mark.timeout(900)
MEMORY = 'negatives.sources=[{kind = "in_batch"}, {kind = "memory", size = 70, warmup = 2, max_age = 3}]'
CASES: dict[str, tuple[str, ...]] = {
    "row_wise": ('sharding.default="row_wise"', "optim.ema.decay=0.9"),
    "mixed": ('sharding.tables={kind = "data_parallel", product_id = "table_wise"}', 'optim.tables.kind="adagrad"'),
    "replicated": ('sharding.default="data_parallel"', MEMORY),
    "accumulate": ("trainer.accumulate=2", 'negatives.frequencies={kind = "streaming", buckets = 64}'),
    "ahead": ('sharding.default="row_wise"',),
}
STEPS, HELD_UP_S = 5, 0.1


@contextmanager
def held_up() -> Iterator[list[int]]:
    """Every late copy waits first. Gives one entry for each that has ended."""
    ended, copy_of = [], Staging.copy

    def copy(self: Staging, *given: Any, **named: Any) -> Copy:
        made = copy_of(self, *given, **named)

        def finish() -> None:
            time.sleep(HELD_UP_S)
            made.finish()
            ended.append(1)

        return replace(made, finish=finish)

    with patch.object(Staging, "copy", copy):
        yield ended


@contextmanager
def ahead() -> Iterator[None]:
    """Batches run ahead, as on a GPU."""
    make = Steps.__init__

    def made(self: Steps, *given: Any, **named: Any) -> None:
        make(self, *given, **named)
        self.pipeline = InputPipeline(self.model, here().device)

    with patch.object(Steps, "__init__", made):
        yield


def train_all(folder: str) -> dict[str, int]:
    """Each case twice, saving in the background and not. Returns how many copies of tables were late."""
    late = {}
    for name, overrides in CASES.items():
        with ExitStack() as stack:
            if name == "ahead":
                stack.enter_context(ahead())
            ended = stack.enter_context(held_up())
            for background in ("true", "false"):
                settings = (f"trainer.steps={STEPS}", "trainer.validations=1", "checkpoint.keep=100")
                every = ("checkpoint.every=1", f"checkpoint.background={background}")
                config = tiny_config(Path(folder) / "data", *settings, *every, *overrides)
                train_here(config, f"{folder}/{name}-{background}", here(), show=False)
            late[name] = len(ended)
    return late


@pytest.mark.parametrize("size", [1, 2])
def test_late_copies_are_of_the_step_they_are_saved_at(tmp_path: Path, size: int) -> None:
    write_tiny_dataset(tmp_path / "data")
    ranks = run_on_ranks(size, train_all, str(tmp_path))
    assert ranks == [dict.fromkeys(CASES, STEPS - 1)] * size, "for the last save training waits"
    for name in CASES:
        late, waited = tmp_path / f"{name}-true", tmp_path / f"{name}-false"
        assert len(kept(late)) == STEPS
        assert kept(late) == kept(waited), name
        assert logged(late) == logged(waited), name
