"""The model of a finished run, as programs judge it, and how its batches were read."""

from torchrec.distributed import DistributedModelParallel

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.planning import ShardingConfig, for_reading
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.errors import UserError
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.runs import RunFolder
from torchrec_mt.schema import Schema
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.checkpoints.store import CheckpointStore
from torchrec_mt.training.keeper import BEST, CheckpointConfig, checkpoints_path
from torchrec_mt.training.run_state import load_weights


def load_run_model(
    run: RunFolder,
    dataset: PreparedDataset,
    schema: Schema,
    model_config: ModelConfig,
    losses: LossConfig,
    sharding: ShardingConfig,
    checkpoint: CheckpointConfig,
    *,
    runtime: Runtime,
    which: str = BEST,
) -> DistributedModelParallel:
    """The trained model of a run, sharded over the present ranks.

    Args:
        which: the mark of its checkpoint, BEST or LAST.

    Raises:
        UserError: on every rank; no such checkpoint, a damaged one, or one of another model.
    """
    model, _ = build_model(
        dataset.manifest,
        schema,
        model_config,
        for_reading(sharding, dataset.manifest.tables, device_type=runtime.device.type, world_size=runtime.world_size),
        losses=losses,
        runtime=runtime,
        seed=0,
        batch_rows=4096,
        table_rate=0.0,
    )
    store = CheckpointStore(checkpoints_path(checkpoint, run), keep=checkpoint.keep)
    try:
        load_weights(model, store, which)
    finally:
        store.close()
    return model


def lanes_of(run: RunFolder, checkpoint: CheckpointConfig) -> int:
    """In how many lanes the batches of a run are read: the ranks that it was begun on. Called on every rank.

    Raises:
        UserError: on every rank; no whole checkpoint.
    """
    store = CheckpointStore(checkpoints_path(checkpoint, run), keep=checkpoint.keep)
    try:
        newest = store.load_newest({}, partial=True)
        if newest is None:
            raise UserError(f"no checkpoint in '{store.where}': train first")
        return int(newest.state["reader"]["lanes"])
    finally:
        store.close()
