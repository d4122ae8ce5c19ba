"""What must not pass in silence: a loss that is no number, vectors that all become one."""

import math
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrec_mt.batch import Batch
from torchrec_mt.distributed.collectives import barrier
from torchrec_mt.errors import UserError, first_line
from torchrec_mt.storage import StorageError
from torchrec_mt.training.checkpoints.files import Files

_ENOUGH = 8
COLLAPSED = 0.05
"""Below this spread the vectors of a batch point almost one way. An untrained model has 0.5 and more."""


def check_losses(losses: Mapping[str, float], batch: Batch, step: int, folder: str | Path, rank: int) -> None:
    """Stops the run at a loss that is no finite number, before the backward pass could spoil the tables.

    Saves the batch of this rank as `rank-R.pt` (readable by torch.load with weights_only). Called on every rank with
    the losses over all ranks, so all stop together, and none before all have saved: a launcher ends the others as soon
    as one has ended.

    Args:
        folder: where, a path or a URL.

    Raises:
        UserError: naming step and task.
    """
    bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
    if not bad:
        return
    try:
        kept = _keep({"step": step, "losses": dict(losses), "batch": plain(batch)}, folder, f"rank-{rank}.pt")
    finally:
        barrier()
    shown = ", ".join(f"{name}: {value}" for name, value in bad.items())
    raise UserError(
        f"the loss at step {step} is no finite number ({shown}); tables and weights are as before the step, the batch "
        f"{kept}: lower optim.table_rate or optim.dense_rate, or look for extreme numbers in the data",
        exit_code=1,
    )


def check_update(gradient_norm: Tensor | None, step: int) -> None:
    """Stops the run before a checkpoint is made of weights that the step has spoilt. Called on every rank.

    Args:
        gradient_norm: of dense weights, the same on all ranks; none where there are none.

    Raises:
        UserError: it is no finite number, though the losses of the step were.
    """
    if gradient_norm is not None and not math.isfinite(gradient_norm):
        raise UserError(
            f"the gradients of step {step} are no finite numbers, though its losses are: no checkpoint is made of "
            "the weights that it leaves; lower optim.table_rate or optim.dense_rate",
            exit_code=1,
        )


def _keep(told: dict[str, Any], folder: str | Path, name: str) -> str:
    """Where it is now, or why it is not; nothing that fails here hides what has happened."""
    data = BytesIO()
    torch.save(told, data)
    try:
        files = Files(folder)
        files.make_folder("")
        files.write(name, [data.getbuffer()])
    except (OSError, StorageError) as error:
        return f"cannot be kept ({first_line(error)})"
    return f"is in '{files.where()}'"


def plain(value: Any) -> Any:
    """A batch as dictionaries of tensors and numbers."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if hasattr(value, "to_dict") and hasattr(value, "keys"):  # KeyedJaggedTensor
        return {"keys": value.keys(), "values": value.values(), "weights": value.weights(), "lengths": value.lengths()}
    return value


def spread(vector_BD: Tensor, id_B: Tensor) -> float:
    """1 - |mean unit vector|^2 over distinct ids: 0 where all are one, near 1 where they point every way.

    NaN for fewer than 8 distinct ids, which say nothing.
    """
    distinct_U, where_B = id_B.unique(return_inverse=True)
    if len(distinct_U) < _ENOUGH:
        return math.nan
    vector_UD = vector_BD.new_zeros(len(distinct_U), vector_BD.shape[1]).index_copy_(0, where_B, vector_BD)
    return 1.0 - float(vector_UD.mean(dim=0).square().sum())
