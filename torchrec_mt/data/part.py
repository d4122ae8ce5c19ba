"""A part of a dataset: what some of its trained tasks need, for models that are trained on these alone."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.errors import UserError
from torchrec_mt.schema import DenseFeature, Schema

S = TypeVar("S", bound=Schema)


def schema_of_tasks(schema: S, tasks: Sequence[str]) -> S:
    """The tasks, those that are judged with their anchor sides, their entities, and the tables that these read.

    Args:
        tasks: trained ones, in any order; none: the whole schema.

    Raises:
        UserError: one of them is no trained task.
    """
    for name in tasks:
        if name not in schema.trained_tasks:
            raise UserError(f"trainer.tasks names '{name}', which is no trained task: {list(schema.trained_tasks)}")
    if not tasks:
        return schema
    kept = {name: task for name, task in schema.tasks.items() if (task.trained_as or name) in tasks}
    ends = {entity for task in kept.values() for entity in (task.anchor, task.candidate)}
    entities = {name: entity for name, entity in schema.entities.items() if name in ends}
    read = {
        feature.table
        for entity in entities.values()
        for feature in entity.features.values()
        if not isinstance(feature, DenseFeature)
    }
    tables = {name: table for name, table in schema.tables.items() if name in read}
    return replace(schema, tasks=kept, entities=entities, tables=tables)


def dataset_of_schema(dataset: PreparedDataset, schema: Schema) -> PreparedDataset:
    """The dataset as if it held no more than the tasks, entities and tables of a part of its schema."""
    manifest = dataset.manifest
    part = replace(
        manifest,
        tasks={name: task for name, task in manifest.tasks.items() if name in schema.tasks},
        entities={name: entity for name, entity in manifest.entities.items() if name in schema.entities},
        tables={name: rows for name, rows in manifest.tables.items() if name in schema.tables},
    )
    return replace(dataset, manifest=part)
