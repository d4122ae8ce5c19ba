"""A trainer on the tiny dataset in this process, for tests of the loop: a process group must be there."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from tests.tiny import TASKS, tiny_schema
from torchrec_mt.balancing.balancer import Balancer
from torchrec_mt.balancing.config import BalancingConfig
from torchrec_mt.batch import Batch
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import InBatch, NegativesConfig, Uniform
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.job import task_sides
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.optim import OptimConfig, Optimizers
from torchrec_mt.training.schedule import CosineSchedule
from torchrec_mt.training.step import Metrics
from torchrec_mt.training.trainer import Keep, Progress, Trainer, TrainerConfig

LOSSES = LossConfig(precision="float32")
NEGATIVES = NegativesConfig(sources=(InBatch(), Uniform(count=8)))

BALANCING = BalancingConfig()
OPTIM = OptimConfig(schedule=CosineSchedule(warmup_steps=2))
MODEL = ModelConfig(dim=16, hidden=24, task_hidden=24)


def tiny_batches(
    dataset: PreparedDataset, *, negatives: NegativesConfig = NEGATIVES, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    config = ReaderConfig(batch_size=60, prefetch=0)
    reader = Reader(config, dataset, tiny_schema(), negatives=negatives, seed=0, rank=rank, world_size=world_size)
    return iter(reader)


def tiny_trainer(
    dataset: PreparedDataset,
    run_path: Path,
    here: Runtime,
    *,
    log: Callable[[int, str, Metrics], None] = lambda step, kind, values: None,
    progress: Progress | None = None,
    log_every: int = 1,
    losses: LossConfig = LOSSES,
    negatives: NegativesConfig = NEGATIVES,
    sharding: ShardingConfig | None = None,
    optim: OptimConfig = OPTIM,
    balancing: BalancingConfig = BALANCING,
    model_config: ModelConfig = MODEL,
    table_dtype: Literal["float32", "float16"] = "float32",
    validate: Callable[[], Metrics] = lambda: {"find/recall@10": 0.5},
    keep: Keep | None = None,
) -> Trainer:
    schema = tiny_schema()
    schema = replace(schema, tables={name: replace(t, dtype=table_dtype) for name, t in schema.tables.items()})
    model, _ = build_model(
        dataset.manifest,
        schema,
        model_config,
        sharding or ShardingConfig(),
        losses=losses,
        runtime=here,
        seed=0,
        batch_rows=200,
        table_rate=optim.table_rate,
    )
    return Trainer(
        TrainerConfig(log_every=log_every, validations=1, metric="recall@10"),
        model,
        Optimizers(optim, model, 20),
        objective=Objective(task_sides(dataset.manifest, tiny_schema()), losses, negatives, here.device),
        balancer=Balancer(balancing, list(TASKS)),
        runtime=here,
        validate=validate,
        log=log,
        offending_path=lambda: run_path / "offending_batch",
        keep=keep,
        progress=progress,
    )
