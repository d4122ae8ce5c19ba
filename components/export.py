"""TorchX component: a run's vectors as Parquet, for whatever serves them.

torchx run -s local_cwd components/export.py:export --run runs/demo -j 1x2 -- --task=search
"""

from typing import Dict, List, Optional

from torchx import specs
from torchx.components import dist


def export(
    *args: str,
    run: str,
    image: str = "torchrec-mt",
    name: str = "/",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,
    j: str = "1x1",
    env: Optional[Dict[str, str]] = None,
    max_retries: int = 0,
    rdzv_port: int = 29500,
    mounts: Optional[List[str]] = None,
) -> specs.AppDef:
    """Writes the vectors of a run's model.

    Args:
        args: after `--`: arguments of `torchrec-mt export`
        run: a run folder that `train` wrote
        image: container image, for schedulers that run containers; `docker build -t torchrec-mt .` makes it
        name: name of the job, EXPERIMENT/RUN or /RUN; default: the program's
        h: a named machine type of TorchX, in place of cpu, gpu and memMB
        cpu: CPU cores of a machine, all its ranks together
        gpu: GPUs of a machine, one for each of its ranks; 0 where there are none
        memMB: memory of a machine in MB, all its ranks together
        j: {machines}x{ranks of a machine}, or {least}:{most}x{ranks} where machines may come and go
        env: environment variables, A=1,B=2
        max_retries: how often the scheduler starts a failed job again
        rdzv_port: where the first machine waits for the others; free on it, or two jobs meet
        mounts: for containers: type=bind,src=/host,dst=/container[,readonly] or type=volume,src=NAME,dst=/container
    """
    return dist.ddp(
        run,
        *args,
        m="torchrec_mt.export",
        image=image,
        name=name,
        h=h,
        cpu=cpu,
        gpu=gpu,
        memMB=memMB,
        j=j,
        env=env,
        max_retries=max_retries,
        rdzv_port=rdzv_port,
        mounts=mounts,
    )
