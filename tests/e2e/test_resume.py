"""A run that was stopped, by whatever and wherever, and resumed gives the same bits as one that was never stopped.

The same are: every tensor of the checkpoints at the end, their JSON state, the random state of every rank, and the log,
all but names and times. On another number of ranks the same pairs are read and losses agree within 1e-6.
"""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.ranks import run_on_ranks
from tests.shop import shared_root
from tests.tiny_run import kept, logged, train_with_stops, write_tiny_dataset

# Of each number of ranks one group of processes trains all cases before its first test.
pytestmark = pytest.mark.timeout(900)
WORLD_SIZES = (1, 2)
STEPS = 12
SOURCES = '{kind = "in_batch"}, {kind = "uniform", count = 8}'
MEMORY = f'negatives.sources=[{SOURCES}, {{kind = "memory", size = 70, warmup = 2, max_age = 3}}]'
STREAMING = 'negatives.frequencies={kind = "streaming", buckets = 64}'
# Steps after which, and how, a run is stopped: validations are at 3, 6, 9 and 12.
USUAL = (("fail", 5), ("term", 9))
CASES: dict[str, tuple[str, ...]] = {
    "default": (),
    "memory": (MEMORY, STREAMING),
    "dropout": ("model.dropout=0.3", 'optim.schedule={kind = "linear", warmup_steps = 4}'),
    "ema": ("optim.ema.decay=0.9",),
    "accumulate": ("trainer.accumulate=2", MEMORY, STREAMING),
    "balanced": ('balancing.method={kind = "gradnorm", rate = 0.2}', "balancing.every=2", "balancing.average=0.5"),
    "balanced_losses": ('balancing.method={kind = "famo", rate = 1.0}',),
    "balanced_windows": ('balancing.method={kind = "dwa", window = 2}', "trainer.log_every=1"),
    "balanced_joined": ('balancing.method={kind = "pcgrad"}', 'balancing.cut="vectors"', "trainer.accumulate=2"),
    "patience": ("trainer.patience=2", 'trainer.metric="find/mrr@10"', "optim.dense_rate=0", "optim.table_rate=0"),
    "adagrad": ('optim.tables.kind="adagrad"', 'sharding.default="row_wise"', 'sharding.tables.kind="column_wise"'),
    "sgd": (
        'optim.tables.kind="sgd"',
        'optim.schedule={kind = "constant", warmup_steps = 1}',
        "optim.clip_norm=0.5",
        'sharding.tables.tokens="data_parallel"',
    ),
    "replicated": ('sharding.default="data_parallel"',),
    "replicated_adagrad": ('sharding.default="data_parallel"', 'optim.tables.kind="adagrad"'),
    "keep_best": ("checkpoint.keep_best=3", "checkpoint.keep=1", "checkpoint.background=false"),
}
STOPPED_AT = [(size, step) for size, steps in ((1, (1, 2, 3, 4, 7, 11)), (2, (1, 3, 8))) for step in steps]


def train_all(folder: str) -> dict[str, Any]:
    at = Path(folder)
    for name, overrides in CASES.items():
        stops = (("term", 2), ("fail", 5), ("term", 7)) if name == "patience" else USUAL
        train_with_stops(at, f"whole-{name}", overrides, ())
        train_with_stops(at, f"stopped-{name}", overrides, stops)
    for step in [step for size, step in STOPPED_AT if size == dist.get_world_size()]:
        train_with_stops(at, f"stopped-{step}", (), (("term", step),))
    return {}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this file's runs, locked for one worker at a time."""
    folder = shared_root(tmp_path_factory) / "resume"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for size in WORLD_SIZES:
            if not (folder / str(size) / "done").exists():
                write_tiny_dataset(folder / f"{size}/data")
                run_on_ranks(size, train_all, str(folder / str(size)))
                (folder / str(size) / "done").touch()
    return folder


def assert_same_run(run: Path, other: Path) -> None:
    assert logged(run) == logged(other)
    these, those = kept(run), kept(other)
    # Beside those with marks, which ones are the newest depends on where the run was stopped.
    for name in those.keys() & these.keys():
        assert these[name]["state"] == those[name]["state"], name
        assert these[name]["tensors"] == those[name]["tensors"], name
    marks, others = ({mark: name for name, told in found.items() for mark in told["marks"]} for found in (these, those))
    assert marks == others
    assert max(these) == max(those)
    told, as_told = (json.loads((path / "training.json").read_text()) for path in (run, other))
    assert told | {"run": ""} == as_told | {"run": ""}


@pytest.mark.parametrize("size", WORLD_SIZES)
@pytest.mark.parametrize("name", CASES)
def test_stopped_and_resumed_is_as_never_stopped(root: Path, name: str, size: int) -> None:
    assert_same_run(root / f"{size}/stopped-{name}", root / f"{size}/whole-{name}")


@pytest.mark.parametrize(("size", "step"), STOPPED_AT)
def test_wherever_it_was_stopped(root: Path, size: int, step: int) -> None:
    assert_same_run(root / f"{size}/stopped-{step}", root / f"{size}/whole-default")
