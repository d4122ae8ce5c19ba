"""What a rank says that has lost another one: one message in place of a backend's traceback."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from torchrec_mt.errors import UserError, first_line

_OTHERS_FIRST = 0.5
"""Seconds. The lost rank breaks its connections before it says why; its message is the one to read first."""


@contextmanager
def telling_lost_ranks() -> Iterator[None]:
    """Around what talks to other ranks.

    Raises:
        UserError: exit code 1; the connection to a rank, or to the job's store, has broken, or a rank did not answer in
            time.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        time.sleep(_OTHERS_FIRST)
        rank = f"rank {dist.get_rank()}: " if dist.is_initialized() else ""
        raise UserError(
            f"{rank}another rank has ended, or does not answer ({_short(error)}): its own last message says why, or "
            "the launcher's",
            exit_code=1,
        ) from None


def _is_loss(error: RuntimeError) -> bool:
    text = str(error)
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    # Of gloo, what its transport says; but a failed "enforce" there is a call that ranks do not make alike: a bug.
    return "ncclRemoteError" in text or ("/gloo/transport/" in text and "enforce fail" not in text)


def _short(error: RuntimeError) -> str:
    """Without the place in somebody's source, and without advice."""
    text = first_line(error)
    return text.rpartition(".cc:")[2].partition("] ")[2].partition(". ")[0] or text
