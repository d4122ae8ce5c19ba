"""The process's place in the job: rank, number of ranks, device. One process needs no launcher and no port."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from torchrec_mt.distributed.lost import telling_lost_ranks
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.errors import UserError, within


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where and how a program computes.

    Args:
        device: `auto` takes CUDA where there is one. threads: CPU threads of a rank; 0 shares the cores among the
            local ranks.
        seed: of everything random. timeout_minutes: how long a collective may wait.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    seed: int = 0
    timeout_minutes: float = 30.0

    def __post_init__(self) -> None:
        within(self, 0, 1024, "threads")
        within(self, 0, 2**32 - 1, "seed")
        within(self, 0.01, 100_000, "timeout_minutes")


@dataclass(frozen=True)
class Runtime:
    """Rank, number of ranks, device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0


def _device(wanted: str, local_rank: int) -> torch.device:
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError(
            'runtime.device = "cuda", but torch sees no CUDA device: use "auto" or "cpu", or see `torchrec-mt doctor`'
        )
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local_rank} has no GPU: {torch.cuda.device_count()} on this machine; start fewer ranks"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def seed_everything(seed: int) -> None:
    """Seeds torch, numpy's legacy generator and `random` (some libraries draw from them)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def runtime(config: RuntimeConfig) -> Iterator[Runtime]:
    """Joins the job that torchrun or TorchX started, or forms a group of one in this process; leaves it at the end.

    Raises:
        UserError: a device that is not there; another rank that is there no longer.
    """
    quiet_dependencies()
    launched = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = _device(config.device, local_rank)
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // local_world))
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(minutes=config.timeout_minutes)
    if launched:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=timeout)
    try:
        with telling_lost_ranks():
            seed_everything(config.seed)
            yield Runtime(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
