"""What a run was made with: versions, machine, command line; recorded with it as `environment.json`."""

import os
import platform
import sys
import time
from importlib import metadata
from typing import Any

import torch

from torchrec_mt.holding import job

_RECORDED = (
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "numpy",
    "pyarrow",
    "duckdb",
    "ibis-framework",
    "torchx",
)


def environment() -> dict[str, Any]:
    """Versions and machine, as recorded with a run. `accelerator`: what the machine has, whether it is used or not."""
    versions = {}
    for name in _RECORDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
        "argv": sys.argv,
        "job": job(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
