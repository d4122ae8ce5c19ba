"""A manifest without data: what a declaration and a few counts say of a dataset that nobody has prepared."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torchrec_mt.data.dataset import MANIFEST, EntityInfo, FeatureInfo, Manifest, PreparedDataset, TaskInfo
from torchrec_mt.errors import UserError, within
from torchrec_mt.schema import CategoryFeature, Feature, IdFeature, NumberFeature, Schema, VectorFeature
from torchrec_mt.storage import is_url


@dataclass(frozen=True, kw_only=True)
class TableCounts:
    """What planning is told of a table, in place of what the prepared dataset says or for lack of one.

    Args:
        rows: of the table. lookups: mean per entity of each feature that reads it; ids and categories have 1.
    """

    rows: int | None = None
    lookups: float | None = None

    def __post_init__(self) -> None:
        if self.rows is not None:
            within(self, 1, 10**13, "rows")
        if self.lookups is not None:
            within(self, 0, 1_000_000, "lookups")


def planned_manifest(schema: Schema, path: str, name: str, counts: Mapping[str, TableCounts]) -> Manifest:
    """The manifest of the prepared dataset, if there is one, with the counts in its place where some are given.

    Raises:
        UserError: counts for a table that is not declared; no dataset, and counts lack a table.
    """
    unknown = sorted(set(counts) - set(schema.tables))
    if unknown:
        raise UserError(f"plan.tables names {unknown}, which are no tables of the dataset: {sorted(schema.tables)}")
    if is_url(path) or not (Path(path) / MANIFEST).is_file():
        return _imagined(schema, path, name, counts)
    dataset = PreparedDataset.open(path)
    dataset.check_declaration(schema)
    manifest = dataset.manifest
    return replace(
        manifest,
        tables={table: _rows(counts, table) or rows for table, rows in manifest.tables.items()},
        entities={
            entity: replace(info, features={f: _recounted(one, counts) for f, one in info.features.items()})
            for entity, info in manifest.entities.items()
        },
    )


def _rows(counts: Mapping[str, TableCounts], table: str) -> int | None:
    return counts[table].rows if table in counts else None


def _told(counts: Mapping[str, TableCounts], table: str | None) -> float | None:
    return counts[table].lookups if table is not None and table in counts else None


def _recounted(feature: FeatureInfo, counts: Mapping[str, TableCounts]) -> FeatureInfo:
    lookups = _told(counts, feature.table)
    return feature if lookups is None else replace(feature, mean_bag=lookups)


def _imagined(schema: Schema, path: str, name: str, counts: Mapping[str, TableCounts]) -> Manifest:
    missing = [f"plan.tables.{table}.rows" for table in schema.tables if _rows(counts, table) is None] + list(
        dict.fromkeys(
            f"plan.tables.{feature.table}.lookups"
            for entity in schema.entities.values()
            for feature in entity.features.values()
            if not isinstance(feature, NumberFeature | VectorFeature) and _lookups(feature, counts) is None
        )
    )
    if missing:
        raise UserError(
            f"no prepared dataset at '{path}', and without one planning needs {', '.join(missing)}: prepare it, or set "
            "these keys"
        )
    return Manifest(
        name=name,
        tables={table: _rows(counts, table) or 0 for table in schema.tables},
        entities={
            entity: EntityInfo(
                count=0, cold=0, features={f: _feature(one, counts) for f, one in declared.features.items()}
            )
            for entity, declared in schema.entities.items()
        },
        tasks={
            task: TaskInfo(
                anchor=declared.anchor,
                candidate=declared.candidate,
                trained_as=declared.trained_as,
                pairs={},
                anchors={},
            )
            for task, declared in schema.tasks.items()
        },
        split={},
        declaration={},
        sources={},
        fingerprint="",
        digest="",
    )


def _lookups(feature: Feature, counts: Mapping[str, TableCounts]) -> float | None:
    """Mean lookups of a sparse feature; None where nobody knows."""
    told = None if isinstance(feature, NumberFeature | VectorFeature) else _told(counts, feature.table)
    if told is not None:
        return told
    return 1.0 if isinstance(feature, IdFeature | CategoryFeature) else None


def _feature(feature: Feature, counts: Mapping[str, TableCounts]) -> FeatureInfo:
    match feature:
        case NumberFeature():
            return FeatureInfo(kind=feature.kind, width=1)
        case VectorFeature():
            return FeatureInfo(kind=feature.kind, width=feature.dim)
        case _:
            return FeatureInfo(kind=feature.kind, table=feature.table, mean_bag=_lookups(feature, counts) or 0.0)
