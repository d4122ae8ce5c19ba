"""From a prepared dataset and configs to a sharded model: where data's vocabulary becomes the model's."""

from dataclasses import replace

import torch
from torchrec.distributed import DistributedModelParallel

from torchrec_mt.data.dataset import Manifest
from torchrec_mt.data.slots import assign_slots
from torchrec_mt.distributed.layouts import DataParallel
from torchrec_mt.distributed.planning import ShardingConfig, told_of_few_rows
from torchrec_mt.distributed.plans.job import make_plan
from torchrec_mt.distributed.plans.plan import Plan
from torchrec_mt.distributed.runtime import Runtime, seed_everything
from torchrec_mt.distributed.sharding import fuse_table_optimizer, shard
from torchrec_mt.distributed.table_optimizers import TableOptimizer
from torchrec_mt.errors import UserError
from torchrec_mt.models.losses.config import BceLoss, LossConfig
from torchrec_mt.models.sharing.choice import Sharing
from torchrec_mt.models.sharing.conditioned import Conditioned
from torchrec_mt.models.size import ModelSize, matched, model_size
from torchrec_mt.models.spec import EntitySpec, ModelSpec, TableSpec, with_own_tables
from torchrec_mt.models.two_tower import ModelConfig, TwoTower
from torchrec_mt.schema import Schema


def model_spec(manifest: Manifest, schema: Schema, losses: LossConfig, sharing: Sharing | None = None) -> ModelSpec:
    """Tables, towers, tasks and biases that the dataset and the losses demand, and tables of single tasks.

    Args:
        sharing: decides whose tables there are; one set for all tasks where None.
    """
    slots = assign_slots(manifest)
    dims = {name: schema.tables[name].dim for name in manifest.tables}
    entities = {}
    for entity, info in manifest.entities.items():
        keys = {slot.features[entity]: slot for slot in slots if entity in slot.features}
        mine = [keys[name] for name, feature in info.features.items() if feature.table is not None]
        entities[entity] = EntitySpec(
            keys=tuple(slot.key for slot in mine),
            widths=tuple(dims[slot.table] for slot in mine),
            dense_dim=sum(feature.width for feature in info.features.values() if feature.table is None),
        )
    spec = ModelSpec(
        tables=tuple(
            TableSpec(
                name=name,
                rows=rows,
                dim=dims[name],
                keys=tuple(slot.key for slot in slots if slot.table == name),
                dtype=schema.tables[name].dtype,
            )
            for name, rows in manifest.tables.items()
        ),
        entities=entities,
        tasks={name: (task.anchor, task.candidate) for name, task in schema.trained_tasks.items()},
        biased=tuple(name for name in schema.trained_tasks if isinstance(losses.of(name), BceLoss)),
    )
    sharing = sharing or Conditioned()
    return with_own_tables(spec, shared=sharing.shared_tables, own=sharing.own_tables)


def sharding_of_tables(sharding: ShardingConfig, spec: ModelSpec) -> ShardingConfig:
    """The config with a layout for each table of single tasks: its own, or that of the table it is a copy of."""
    named = sharding.tables
    tables = {name: layout for name, layout in named.items() if name not in spec.vocabularies.values()}
    for name, vocabulary in spec.vocabularies.items():
        if name in named or vocabulary in named:
            tables[name] = named.get(name, named.get(vocabulary, sharding.default))
    return replace(sharding, tables=tables)


def check_tables(spec: ModelSpec, model_config: ModelConfig, sharding: ShardingConfig) -> None:
    """Refuses what no model can be.

    Raises:
        UserError: a temperature for a task that is not trained; replicated float16.
    """
    for name in model_config.temperatures:
        if name not in spec.tasks:
            raise UserError(f"model.temperatures names '{name}', which is no trained task: {list(spec.tasks)}")
    for table in spec.tables:
        if table.dtype != "float32" and isinstance(sharding.of(table.name), DataParallel):
            raise UserError(
                f'dataset.tables.{table.vocabulary}.dtype = "{table.dtype}", but replicated tables are float32, as '
                "their gradients are: leave dtype out, or shard the table another way (sharding.tables)"
            )


def pooling_factors(manifest: Manifest, spec: ModelSpec) -> dict[str, list[float]]:
    """Per table, mean lookups per row of the batch for each key that reads it (the planner's input)."""
    mean = {
        slot.key: max(manifest.entities[entity].features[feature].mean_bag for entity, feature in slot.features.items())
        for slot in assign_slots(manifest)
    }
    return {table.name: [mean[key] for key in table.keys] for table in spec.tables}


def build_model(
    manifest: Manifest,
    schema: Schema,
    model_config: ModelConfig,
    sharding: ShardingConfig,
    *,
    losses: LossConfig,
    runtime: Runtime,
    seed: int,
    batch_rows: int,
    table_rate: float,
    table_optimizer: TableOptimizer | None = None,
    averages: bool = False,
) -> tuple[DistributedModelParallel, Plan]:
    """The model, its tables sharded over the ranks with their optimizer fused in, and the plan by which.

    Args:
        losses: decides which tasks have a bias. batch_rows: rows of a batch per rank that the planner should expect.
        table_optimizer: row-wise Adagrad where None. averages: of dense weights are to be kept.

    Raises:
        UserError: a temperature for a task that is not trained; tables that cannot be planned; replicated float16.
    """
    spec = model_spec(manifest, schema, losses, model_config.sharing)
    model_config, sharding = matched(spec, model_config), sharding_of_tables(sharding, spec)
    check_tables(spec, model_config, sharding)
    seed_everything(seed)
    model = TwoTower(spec, model_config, device=runtime.device, table_device=torch.device("meta"))
    fuse_table_optimizer(model.embeddings, table_rate, table_optimizer)
    sharding_plan, plan = make_plan(
        model,
        sharding,
        pooling_factors=pooling_factors(manifest, spec),
        batch_size=batch_rows,
        device_type=runtime.device.type,
        optimizer=table_optimizer,
        averages=averages,
        model=manifest.name,
    )
    # Shards are initialised on their own ranks: with one seed for all, shards of a table would repeat each other.
    seed_everything(seed + 1 + runtime.rank)
    return shard(model, sharding_plan, runtime.device, sharding.communication), plan


def told_of_tables(
    manifest: Manifest,
    schema: Schema,
    model_config: ModelConfig,
    sharding: ShardingConfig,
    losses: LossConfig,
    *,
    world_size: int,
) -> list[str]:
    """For a person: tables of the model that `build_model` builds which do not lie as `sharding.default` says."""
    spec = model_spec(manifest, schema, losses, model_config.sharing)
    rows = {table.name: table.rows for table in spec.tables}
    return told_of_few_rows(sharding_of_tables(sharding, spec), rows, world_size=world_size)


def size_of(manifest: Manifest, schema: Schema, model_config: ModelConfig, losses: LossConfig) -> ModelSize:
    """The size of the model that `build_model` builds."""
    spec = model_spec(manifest, schema, losses, model_config.sharing)
    return model_size(spec, matched(spec, model_config))
