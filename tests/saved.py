"""Weights on disk by torch's own means, for tests that start from the same ones or compare whole tables."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torchrec.distributed import DistributedModelParallel


@contextmanager
def _sharded_tensors() -> Iterator[None]:
    """TorchRec 1.8 keeps tables as ShardedTensor, which torch 2.13 calls deprecated at every touch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use DTensor instead", category=FutureWarning)
        yield


def save_model(model: DistributedModelParallel, path: Path) -> None:
    """Called on every rank."""
    with _sharded_tensors():
        save({"model": model.state_dict()}, checkpoint_id=path)


def load_model(model: DistributedModelParallel, path: Path) -> None:
    """Into the model as it is sharded now, on every rank."""
    state = {"model": model.state_dict()}
    with _sharded_tensors():
        load(state, checkpoint_id=path)
    model.load_state_dict(state["model"])
