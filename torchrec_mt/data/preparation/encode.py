"""Writes one entity: every feature encoded, a row group of entities at a time, then the flat arrays of the store."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from torchrec_mt.data.dataset import EntityInfo, FeatureInfo, PreparedDataset
from torchrec_mt.data.preparation.bags import BagReader
from torchrec_mt.data.preparation.dense import standardise, vectors
from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.data.preparation.folder import require_room
from torchrec_mt.data.store import write_store
from torchrec_mt.schema import Entity, NumberFeature, SparseFeature, TextFeature, VectorFeature

ROW_GROUP = 65_536


def write_entity(
    engine: Engine,
    dataset: PreparedDataset,
    name: str,
    entity: Entity,
    frame: ir.Table,
    readers: Mapping[str, BagReader],
) -> EntityInfo:
    """Writes `entities/NAME.parquet` and `store/NAME/`.

    Args:
        dataset: only its paths are used.
        frame: the entity with final rows: row, id, train_count and `f:FEATURE` columns.
        readers: bags of each sparse feature.

    Raises:
        UserError: bad numbers or vectors.
    """
    counts = engine.arrow(frame.order_by("row").select("id", "train_count"))
    numbers, infos = _numbers(engine, name, entity, frame, counts["id"])
    target = dataset.entity_path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    writer: pq.ParquetWriter | None = None
    missing: Counter[str] = Counter()
    try:
        for start in range(0, len(counts), ROW_GROUP):
            here = slice(start, min(start + ROW_GROUP, len(counts)))
            raw = _raw_columns(engine, frame, entity, here)
            block: dict[str, pa.Array] = {"id": counts["id"][here].combine_chunks()}
            for feature_name, feature in entity.features.items():
                match feature:
                    case NumberFeature():
                        block[feature_name] = pa.array(numbers[feature_name][here])
                    case VectorFeature():
                        key, values = f"entities.{name}.features.{feature_name}", raw[f"f:{feature_name}"]
                        block[feature_name], without = vectors(key, values, block["id"], feature)
                        missing[feature_name] += without
                    case _:
                        block |= _bag_columns(feature_name, readers[feature_name], raw, here)
            block["train_count"] = counts["train_count"][here].combine_chunks().cast(pa.int64())
            table = pa.table(block)
            writer = writer or pq.ParquetWriter(target, table.schema)
            writer.write_table(table, row_group_size=ROW_GROUP)
    finally:
        if writer is not None:
            writer.close()
    for feature_name, feature in entity.features.items():
        if isinstance(feature, VectorFeature):
            infos[feature_name] = FeatureInfo(kind="vector", width=feature.dim, missing=missing[feature_name])
        elif not isinstance(feature, NumberFeature):
            infos[feature_name] = _sparse_info(feature, readers[feature_name], len(counts))
    cold = pc.sum(pc.equal(counts["train_count"], 0)).as_py() or 0
    info = EntityInfo(count=len(counts), cold=cold, features={f: infos[f] for f in entity.features})
    require_room(dataset.path, _store_bytes(info))
    write_store(target, dataset.store_path(name), info)
    return info


def _numbers(
    engine: Engine, name: str, entity: Entity, frame: ir.Table, ids: pa.ChunkedArray
) -> tuple[dict[str, np.ndarray], dict[str, FeatureInfo]]:
    """Number features, standardised over all entities."""
    numbers: dict[str, np.ndarray] = {}
    infos: dict[str, FeatureInfo] = {}
    for feature_name, feature in entity.features.items():
        if isinstance(feature, NumberFeature):
            values = engine.arrow(frame.order_by("row").select(x=f"f:{feature_name}"))["x"]
            key = f"entities.{name}.features.{feature_name}"
            numbers[feature_name], mean, std = standardise(key, values, ids, feature)
            infos[feature_name] = FeatureInfo(kind="number", width=1, mean=mean, std=std)
    return numbers, infos


def _raw_columns(engine: Engine, frame: ir.Table, entity: Entity, here: slice) -> pa.Table:
    """Columns that are written as they are, or nearly so."""
    copied = (TextFeature, VectorFeature)
    names = [f"f:{name}" for name, feature in entity.features.items() if isinstance(feature, copied)]
    rows = frame.filter((frame.row >= here.start) & (frame.row < here.stop)).order_by("row")
    return engine.arrow(rows.select("row", *names)) if names else pa.table({})


def _bag_columns(name: str, reader: BagReader, raw: pa.Table, here: slice) -> dict[str, pa.Array]:
    bags = reader.read(here.start, here.stop)
    offsets = pa.array(bags.offsets, pa.int32())
    columns = {name: pa.ListArray.from_arrays(offsets, pa.array(bags.values, pa.int32()))}
    if reader.weight_of_row is not None:
        weights = pa.array(reader.weight_of_row[bags.values], pa.float32())
        columns[f"{name}__weight"] = pa.ListArray.from_arrays(offsets, weights)
    if isinstance(reader.feature, TextFeature):
        columns[f"{name}__text"] = raw[f"f:{name}"].combine_chunks().cast(pa.string())
    return columns


def _sparse_info(feature: SparseFeature, reader: BagReader, count: int) -> FeatureInfo:
    info = FeatureInfo(kind=feature.kind, table=feature.table, weighted=reader.weight_of_row is not None)
    return replace(info, mean_bag=reader.lookups / count, truncated=reader.truncated)


def _store_bytes(info: EntityInfo) -> int:
    floats = sum(
        feature.width if feature.table is None else 2 + feature.mean_bag * (1 + feature.weighted)
        for feature in info.features.values()
    )
    return int(4 * floats * info.count)
