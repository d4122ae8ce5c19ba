"""A whole config on the tiny dataset, for tests of runs in this process or on the ranks of tests/ranks.py."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.tiny import tiny_schema, write_tiny
from torchrec_mt.config import RunConfig, apply_overrides, check_config
from torchrec_mt.data.dataset import MANIFEST, declaration_json, manifest_to_json
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.distributed.runtime import Runtime

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
