"""What a rank says that has lost another one: one message in place of a backend's traceback."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from torchrec_mt.errors import UserError, first_line

_OTHERS_FIRST = 0.5
"""Seconds. The lost rank breaks its connections before it says why; its message is the one to read first."""
_TOGETHER = 60.0
"""Seconds in which a mistake that all ranks make is made by all."""


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


class Together:
    """For ranks that pass over mistakes: all must have made it, or the others still wait for this one and would take
    what it does next for what they wait for. Made on every rank."""

    def __init__(self) -> None:
        self._wait = timedelta(seconds=_TOGETHER)
        self._group = None if dist.get_world_size() == 1 else dist.new_group(backend="gloo", timeout=self._wait)

    def failed(self, error: Exception) -> None:
        """Called by a rank that is about to pass over its mistake.

        Raises:
            UserError: exit code 1; it is the mistake of this rank alone.
        """
        if self._group is None:
            return
        try:
            dist.monitored_barrier(self._group, self._wait)  # of rank 0; that of the others is the group's
        except RuntimeError:
            raise UserError(f"rank {dist.get_rank()} failed alone: {first_line(error)}", exit_code=1) from error


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
