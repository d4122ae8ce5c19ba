"""Model weights on disk by torch.distributed.checkpoint: written by any number of ranks, read by any other number."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torchrec.distributed import DistributedModelParallel

from torchrec_mt.distributed.collectives import barrier, on_main
from torchrec_mt.errors import UserError


@contextmanager
def _sharded_tensors() -> Iterator[None]:
    """TorchRec 1.8 keeps tables as ShardedTensor, which torch 2.13 calls deprecated at every touch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
        yield


def save_model(model: DistributedModelParallel, path: Path) -> None:
    """Writes aside and renames, so that `path` holds a whole model at any moment. Called on every rank.

    Raises:
        UserError: on every rank, if any could not write.
    """
    aside = path.with_name(f".{path.name}.partial")

    def clear() -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)

    def publish() -> None:
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            os.rename(path, old)
        os.rename(aside, path)
        shutil.rmtree(old, ignore_errors=True)

    on_main(clear)
    with _sharded_tensors():
        try:
            save({"model": model.state_dict()}, checkpoint_id=aside)
        except CheckpointException as error:
            free = shutil.disk_usage(path.parent).free
            raise UserError(
                f"writing the model to '{path}' failed ({_reason(error)}); no room left? {free:,} bytes are free: "
                "free some, or train with another --output"
            ) from None
    on_main(publish)
    barrier()


def _reason(error: CheckpointException) -> str:
    """The first rank's own error, without the traceback that torch puts into the message."""
    first, _ = next(iter(error.failures.values()))
    return ": ".join([type(first).__name__, *str(first).splitlines()[:1]])


def load_model(model: DistributedModelParallel, path: Path) -> None:
    """Reads weights into the model as it is sharded now. Called on every rank.

    Raises:
        UserError: on every rank, no model at `path`, a damaged one, or one of another shape.
    """
    if not (path / ".metadata").is_file():
        raise UserError(f"no model at '{path}': was the run stopped before its first validation? train again")
    state = {"model": model.state_dict()}
    with _sharded_tensors():
        try:
            load(state, checkpoint_id=path)
        except CheckpointException as error:
            raise UserError(
                f"the model at '{path}' does not load ({_reason(error)}): it is damaged, or of another shape than the "
                "config says: leave out --set of model.* and dataset.tables.*, or train again"
            ) from None
    model.load_state_dict(state["model"])
