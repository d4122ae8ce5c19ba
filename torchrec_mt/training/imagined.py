"""The planning problem of a config on an imagined cluster: the model on meta tensors, no process group, no data."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from torchrec_mt.data.dataset import Manifest
from torchrec_mt.data.imagined import TableCounts
from torchrec_mt.data.negatives import NegativesConfig, Popularity, Uniform
from torchrec_mt.data.reader import ReaderConfig
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.plans.clusters import Cluster
from torchrec_mt.distributed.plans.planner import Problem
from torchrec_mt.distributed.plans.reading import read_plan
from torchrec_mt.distributed.sharding import fuse_table_optimizer
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.size import matched
from torchrec_mt.models.two_tower import ModelConfig, TwoTower
from torchrec_mt.schema import Schema
from torchrec_mt.training.assemble import check_tables, model_spec, pooling_factors, sharding_of_tables
from torchrec_mt.training.optim import OptimConfig


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What `torchrec-mt plan` supposes.

    Args:
        cluster: HOSTSxRANKSxDEVICE, e.g. 2x8xH100-80GB, or a TOML file. tables: counts of tables.
    """

    cluster: str = "1x1xCPU"
    tables: dict[str, TableCounts] = field(default_factory=dict)


def batch_rows(reader: ReaderConfig, negatives: NegativesConfig, schema: Schema, accumulate: int) -> int:
    """Rows of a batch per rank, at most: both sides of each pair, and what is drawn from catalogues."""
    drawn = 0
    for entity in dict.fromkeys(task.candidate for task in schema.trained_tasks.values()):
        sources = [
            source
            for name, task in schema.trained_tasks.items()
            if task.candidate == entity
            for source in negatives.of(name)
        ]
        drawn += _drawn(sources)
    return accumulate * (2 * reader.batch_size + drawn)


def _drawn(sources: Sequence[object]) -> int:
    """Uniform draws are shared by the tasks of an entity, others are not."""
    uniform = max((source.count for source in sources if isinstance(source, Uniform)), default=0)
    return uniform + sum(source.count for source in sources if isinstance(source, Popularity))


def imagined_problem(
    manifest: Manifest,
    schema: Schema,
    cluster: Cluster,
    *,
    model_config: ModelConfig,
    sharding: ShardingConfig,
    losses: LossConfig,
    optim: OptimConfig,
    rows: int,
) -> Problem:
    """What `solve` takes.

    Args:
        rows: of a batch per rank (`batch_rows`).

    Raises:
        UserError: what the model or its tables cannot be, no plan where `sharding.plan` says.
    """
    spec = model_spec(manifest, schema, losses, model_config.sharing)
    model_config, sharding = matched(spec, model_config), sharding_of_tables(sharding, spec)
    check_tables(spec, model_config, sharding)
    model = TwoTower(spec, model_config, device=torch.device("meta"))
    fuse_table_optimizer(model.embeddings, optim.table_rate, optim.tables)
    return Problem(
        module=model,
        sharding=sharding,
        cluster=cluster,
        lookups=pooling_factors(manifest, spec),
        batch_rows=rows,
        optimizer=optim.tables,
        averages=optim.ema is not None,
        pinned=read_plan(sharding.plan) if sharding.plan else None,
        model=manifest.name,
    )
