"""TorchX component: is one run's model better than another's; an experiment, on one machine.

torchx run -s local_cwd components/compare.py:compare --first runs/a --second runs/b
torchx run -s local_cwd components/compare.py:compare --first launch/grids/bundlerec_methods.toml -- --jobs 8
"""

from typing import Dict, List, Optional

from torchx import specs
from torchx.components import utils


def compare(
    *args: str,
    first: str,
    second: str = "",
    image: str = "torchrec-mt",
    name: str = "compare",
    h: Optional[str] = None,
    cpu: int = 1,
    memMB: int = 2048,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Compares the models of two evaluated runs, anchor by anchor, or runs an experiment.

    Args:
        args: after `--`: arguments of `torchrec-mt compare`
        first: a run folder that `evaluate` judged, or an experiment's file
        second: another run, judged on the same dataset
        image: container image, for schedulers that run containers; `docker build -t torchrec-mt .` makes it
        name: name of the job
        h: a named machine type of TorchX, in place of cpu and memMB
        cpu: CPU cores
        memMB: memory in MB
        env: environment variables, A=1,B=2
        max_retries: how often the scheduler starts a failed job again
        mounts: for containers: type=bind,src=/host,dst=/container[,readonly] or type=volume,src=NAME,dst=/container
    """
    app = utils.python(
        first,
        *([second] if second else []),
        *args,
        m="torchrec_mt.compare",
        image=image,
        name=name,
        h=h,
        cpu=cpu,
        memMB=memMB,
    )
    role = app.roles[0]  # utils.python takes none of these
    role.env |= env or {}
    role.max_retries = max_retries
    role.mounts = specs.parse_mounts(mounts or [])
    return app
