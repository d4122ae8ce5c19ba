"""The model of a finished run, as programs judge it."""

from torchrec.distributed import DistributedModelParallel

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.planning import ShardingConfig, for_reading
from torchrec_mt.distributed.runtime import Runtime
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
