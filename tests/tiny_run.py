"""A whole config on the tiny dataset, for tests of runs in this process or on the ranks of tests/ranks.py."""

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from tests.tiny import tiny_schema, write_tiny
from torchrec_mt.config import RunConfig, apply_overrides, check_config
from torchrec_mt.data.dataset import MANIFEST, declaration_json, manifest_to_json
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.training.checkpoints.commit import COMMIT
from torchrec_mt.training.preemption import preemption
from torchrec_mt.training.step import Steps
from torchrec_mt.workflows.training import train_here

BASE: dict[str, Any] = {
    "reader": {"batch_size": 60},
    "negatives": {"sources": [{"kind": "in_batch"}, {"kind": "uniform", "count": 8}]},
    "loss": {"precision": "float32"},
    "model": {"dim": 16, "hidden": 24, "task_hidden": 24},
    "optim": {"table_rate": 0.1, "dense_rate": 0.01, "schedule": {"kind": "cosine", "warmup_steps": 3}},
    "trainer": {"steps": 12, "validations": 4, "metric": "recall@10", "validation_anchors": 20, "log_every": 2},
    "runtime": {"device": "cpu", "threads": 1},
}


def write_tiny_dataset(path: Path, *, digest: str = "tiny", **what: Any) -> None:
    """The tiny dataset with what a program checks of it: declaration and digest."""
    manifest = write_tiny(path, **what).manifest
    told = dataclasses.replace(manifest, declaration=declaration_json(tiny_schema()), digest=digest)
    (path / MANIFEST).write_text(manifest_to_json(told))


def tiny_config(data: Path, *overrides: str) -> RunConfig:
    """Twelve steps with a validation every third."""
    dataset = declaration_json(tiny_schema()) | {
        "name": "tiny",
        "path": str(data),
        "source": {"kind": "synthetic_shop"},
    }
    return check_config(apply_overrides(BASE | {"dataset": dataset}, overrides), where="tiny")


def here() -> Runtime:
    """This rank of tests/ranks.py."""
    quiet_dependencies()
    return Runtime(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))


class StoppedError(Exception):
    """What a test stops a run with."""


@contextmanager
def stopping(how: str, at: int) -> Iterator[None]:
    """Within, a run is stopped at a step: asked to end after it ("term"), or failing before it is taken ("fail")."""
    step_of = Steps.step

    def step(self: Steps, batches: Any, step: int, **named: Any) -> Any:
        if step + 1 == at and how == "term" and dist.get_rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        elif step == at and how == "fail":
            raise StoppedError
        return step_of(self, batches, step, **named)

    with patch.object(Steps, "step", step):
        yield


def train_with_stops(
    folder: Path,
    run: str,
    overrides: tuple[str, ...],
    stops: tuple[tuple[str, int], ...],
    *,
    resume: bool = False,
    finish: bool = True,
) -> None:
    """Trains a run into the folder, stopped and resumed on the way.

    Args:
        resume: it was begun before. finish: train it to its end after the last stop.
    """
    config, path = tiny_config(folder / "data", "checkpoint.every=2", *overrides), str(folder / run)
    for number, (how, at) in enumerate(stops):
        with stopping(how, at), preemption() as noted:
            try:
                outcome = train_here(
                    config, path, here(), resume=resume or number > 0, show=False, asked=lambda: noted.asked
                )
            except StoppedError:
                continue
            assert outcome["interrupted"], f"{run} was not stopped at {at}"
            assert outcome["steps"] == at
    if finish:
        outcome = train_here(config, path, here(), resume=resume or bool(stops), show=False)
        assert not outcome["interrupted"]


TIMES = ("ms/", "ms_min/", "ms_median/", "ms_max/", "slowest/")


def without_times(line: str) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    values = json.loads(line)
    return {name: value for name, value in values.items() if not name.startswith(TIMES) and name != "pairs_per_second"}


def logged(run: Path) -> list[dict[str, Any]]:
    return [without_times(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def kept(run: Path) -> dict[str, Any]:
    """By checkpoint: its marks, the bytes of its tensors by rank, its state."""
    found = {}
    for folder in sorted((run / "checkpoints").iterdir()):
        commit = json.loads((folder / COMMIT).read_text())
        [state] = folder.glob("state.*.json")
        ranks = sorted(folder.glob("rank-*.safetensors"))
        found[folder.name] = {
            "marks": sorted(commit["marks"]),
            "tensors": [file.read_bytes() for file in ranks],
            "state": json.loads(state.read_text()),
        }
    return found
