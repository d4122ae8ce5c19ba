"""Pre-emption: SIGTERM asks a training to save a checkpoint and to end, instead of ending it where it stands.

Schedulers send it some seconds before they take the machine away (Slurm, Kubernetes, spot instances), torchelastic when
another rank has failed.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Preemption:
    """Whether this process was asked to end."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def preemption() -> Iterator[Preemption]:
    """Takes note of SIGTERM while it lasts; a second one ends the process as usual."""
    noted = Preemption()
    if threading.current_thread() is not threading.main_thread():
        yield noted  # only the main thread hears signals
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.asked = True
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, before)
