"""The cluster of the job that runs."""

import dataclasses
import os
import re
from pathlib import Path

import torch
import torch.distributed as dist

from torchrec_mt.distributed.layouts import Hosts
from torchrec_mt.distributed.plans.clusters import GIB, Cluster, Device, catalogue


def this_cluster(device_type: str) -> Cluster:
    """The ranks of this job on what the machine has, the least that any rank has; called on every rank.

    Bandwidths are of the catalogue's device of that name, or of its CPU, A100 or L4; memory is what the system says.
    """
    world_size = dist.get_world_size()
    # Ranks that do not fall evenly on hosts are one host to TorchRec, too.
    hosts = Hosts.of(world_size) or Hosts(1, world_size)
    name, device = _gpu() if device_type == "cuda" else ("CPU", catalogue()["CPU"])
    mine = (device.memory_gib, _host_gib())
    all_ranks: list[tuple[float, float]] = [mine] * world_size
    dist.all_gather_object(all_ranks, mine)
    least = [min(column) for column in zip(*all_ranks, strict=True)]
    device = dataclasses.replace(device, memory_gib=least[0], host_memory_gib=least[1])
    return Cluster(hosts=hosts.count, ranks_per_host=hosts.ranks, name=name, device=device)


def _gpu() -> tuple[str, Device]:
    """The GPU of this rank by the catalogue's name of its model, else by one of its size."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    gib = properties.total_memory / GIB
    models = {name: device for name, device in catalogue().items() if device.kind == "cuda"}
    named = [name for name in models if re.search(rf"\b{name.split('-')[0]}\b", properties.name)]
    nearest = min(named or models, key=lambda name: abs(models[name].memory_gib - gib))
    return nearest, dataclasses.replace(models[nearest], memory_gib=gib)


def _host_gib() -> float:
    """The host's memory, or less if a control group allows less; whole GiB, so that like hosts are alike."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    allowed = min(total, int(text)) if text.isdecimal() else total
    return max(1.0, float(allowed // GIB))
