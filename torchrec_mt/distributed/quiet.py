"""Silences messages of dependencies that say nothing to a user, each by its exact text and with its reason."""

import logging
import threading
import warnings

_MESSAGES = (
    # The planner is told the topology outright; the factory it advertises is for named clouds.
    ("torchrec.distributed.planner.types", "The topology was constructed directly"),
    # Said on the first import of fx by any tracing code.
    ("torch.fx._symbolic_trace", "is_fx_tracing will return true"),
    # Replicated tables have no shards, and nobody asked for a cache.
    ("root", "Sharding spec not found for "),
    ("torchrec.distributed.utils", "Sharding Type is data_parallel, caching params will be ignored"),
    # Of layouts over hosts: a host is what LOCAL_WORLD_SIZE says, and who is connected to whom.
    ("torchrec.distributed.comm", "TORCHREC_RESOLVED_POD_SIZE not set"),
    ("torchrec.distributed.comm", "[Connection] "),
)

_WARNINGS = (
    # TorchRec 1.8 calls collectives by the names they had before torch 2.13.
    (FutureWarning, r"`torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated"),
    # On CPU the lookup of a replicated table brings its own backward; tests/parity compares the gradients.
    (UserWarning, r"fbgemm::dense_embedding_codegen_lookup_function: an autograd kernel was not registered"),
)


class _Filter(logging.Filter):
    def __init__(self, start: str) -> None:
        super().__init__()
        self.start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.start)


class _QuietThreads:
    """Of TensorBoard's writer, a thread, a full disk is told by its next call, in the thread that calls."""

    def __init__(self) -> None:
        self.others = threading.excepthook

    def __call__(self, failed: threading.ExceptHookArgs) -> None:
        if not (type(failed.thread).__name__ == "_AsyncWriterThread" and isinstance(failed.exc_value, OSError)):
            self.others(failed)


def quiet_dependencies() -> None:
    """Installs the filters; calling it again does nothing."""
    if not isinstance(threading.excepthook, _QuietThreads):
        threading.excepthook = _QuietThreads()
    for name, start in _MESSAGES:
        logger = logging.getLogger(name)
        if not any(isinstance(existing, _Filter) and existing.start == start for existing in logger.filters):
            logger.addFilter(_Filter(start))
    for category, message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
