"""How the ranks of a launched job find each other: a store for this try of the job alone.

torchrun's agent keeps one store for all tries of a job (torch 2.13; docs/decisions.md). Ranks that are started again
would read in it where those of the try before listened, and wait for the dead. Nothing in a rank's environment tells
the try in the same words on all machines, so rank 0 makes up a name for it, and tells it to whoever is there now.
"""

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from torchrec_mt.errors import UserError


def join_job(backend: str, timeout: timedelta) -> None:
    """Makes the process group of the ranks that a launcher started.

    Raises:
        UserError: exit code 1; ranks that did not come in time.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=timeout)
        return
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    store = store_of_this_try(store, rank, world_size, timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def store_of_this_try(store: Store, rank: int, world_size: int, timeout: timedelta) -> Store:
    """A part of the store that no earlier try has written to; called on every rank.

    A rank shows a token of its own, and takes the name that is told to this token: only a rank 0 that lives can have
    seen it.
    """
    if rank > 0:
        token = uuid.uuid4().hex
        store.set(f"try/here/{rank}", token)
        name = store.get(f"try/name/{token}").decode()
        store.set(f"try/{name}/{rank}", "joined")
        return PrefixStore(name, store)
    name, told, missing = uuid.uuid4().hex, set[bytes](), set(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            here = f"try/here/{other}"
            if store.check([here]) and (token_seen := store.get(here)) not in told:
                store.set(f"try/name/{token_seen.decode()}", name)
                told.add(token_seen)
        missing = {other for other in missing if not store.check([f"try/{name}/{other}"])}
        if missing and time.monotonic() > deadline:
            raise UserError(
                f"of {world_size} ranks, {sorted(missing)[:8]} did not come within {timeout.total_seconds():.0f} s "
                "(runtime.timeout_minutes): look at their logs and at the network between the machines",
                exit_code=1,
            )
        time.sleep(0.01)
    return PrefixStore(name, store)
