"""TorchX component: where the tables would lie on a cluster that need not exist; one process, no GPU.

torchx run -s local_cwd components/plan.py:plan --config launch/demo.toml --cluster 2x8xH100-80GB
"""

from typing import Dict, List, Optional

from torchx import specs
from torchx.components import utils


def plan(
    *args: str,
    config: List[str],
    cluster: str,
    image: str = "torchrec-mt",
    name: str = "plan",
    h: Optional[str] = None,
    cpu: int = 2,
    memMB: int = 8192,
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Plans where the tables of a model lie on a cluster.

    Args:
        args: after `--`: more TOML files, then --set=KEY=VALUE and other arguments of `torchrec-mt plan`
        config: TOML files with commas between them, merged left to right
        cluster: HOSTSxRANKSxDEVICE such as 2x8xH100-80GB, or a TOML file
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
        *config,
        *args,
        f"--cluster={cluster}",
        m="torchrec_mt.plan",
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
