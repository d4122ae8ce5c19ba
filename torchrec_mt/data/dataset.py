"""The prepared dataset: a folder that `preparation` writes once and everything after it only reads.

manifest.json                     what is in it (this module's dataclasses)
entities/ENTITY.parquet           row i is entity i (most frequent in training first): `id` (string), and per feature
                                    id, category, categories, text: list<int32> of table rows
                                    FEATURE__weight: list<float32>    (text with weights = "idf" only)
                                    FEATURE__text: string             (text features: the joined raw text)
                                    number: float32, vector: list<float32>
                                  `train_count` (int64): training pairs, any trained task, that hold the entity
store/ENTITY/FEATURE.*.npy        the same features as flat arrays for memory mapping (see store.py)
vocabulary/TABLE.parquet          value (string), row (int32), count (int64); text tables: kind ("word", "ngram")
pairs/TASK/SPLIT.parquet          SPLIT in train, valid, test: anchor, candidate (int64 entity rows),
                                  count, weight, grade (float32)
frequencies/TASK/END.parquet      END in anchors, candidates: train_count (int64): row i is entity i of that end, number
                                  of training pairs that hold it
known/TASK/candidates.*.npy       per anchor the candidates never to be taken as its negatives: those of its training
                                  pairs, and those whose role is "ignore" (see links.py; trained tasks only)
known/TASK/anchors.*.npy          the same pairs, per candidate
known/TASK/ignored.*.npy          per anchor the candidates whose role is "ignore" (tasks with such a role only)
negatives/TASK/candidates.*.npy   per anchor the candidates named as its negatives, none of them known (tasks that name
                                  negatives only)
truth/TASK.parquet                anchor, candidate (int64), score (float64), best first (tasks with `truth` only)
"""

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.data.links import Links
from torchrec_mt.data.opening import Mapped, reading
from torchrec_mt.errors import UserError
from torchrec_mt.schema import Schema
from torchrec_mt.storage import local_copy

FORMAT = 2
MANIFEST = "manifest.json"
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
End = Literal["anchor", "candidate"]
ENDS: tuple[End, ...] = ("anchor", "candidate")


@dataclass(frozen=True, kw_only=True)
class FeatureInfo:
    """One feature as prepared. `table` is None for dense features; `width` is the number of floats of a dense one."""

    kind: str
    table: str | None = None
    weighted: bool = False
    width: int = 0
    mean: float = 0.0
    std: float = 1.0
    mean_bag: float = 0.0
    """Mean number of lookups per entity (the planner's pooling factor)."""
    truncated: int = 0
    """Entities whose bag was cut to the longest allowed."""
    missing: int = 0
    """Entities without a vector: they have zeros."""


@dataclass(frozen=True, kw_only=True)
class EntityInfo:
    """One entity as prepared: number of entities, how many never occur in training, and the features."""

    count: int
    cold: int
    features: dict[str, FeatureInfo] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """One task as prepared.

    Args:
        pairs, anchors: per split, pairs and distinct anchors.
        rejected: raw pairs left out, by reason ("unknown anchor", "unknown candidate", "group too large", ...).
        notes: what else a reader should know ("real_pairs" and "permuted_pairs" of the permutation check,
            "split" where the task is not split by the columns that the split or the task names,
            "named_negatives" and "ignored_pairs" where the task can have some, "unknown_in_negatives",
            "unknown_in_truth").
    """

    anchor: str
    candidate: str
    trained_as: str | None
    pairs: dict[str, int]
    anchors: dict[str, int]
    rejected: dict[str, int] = field(default_factory=dict)
    notes: dict[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared dataset holds. `fingerprint` is of its inputs, `digest` of its content."""

    name: str
    tables: dict[str, int]
    """Rows of each embedding table, the out-of-vocabulary row included."""
    entities: dict[str, EntityInfo]
    tasks: dict[str, TaskInfo]
    split: dict[str, float | str]
    declaration: dict[str, object]
    """The schema this was prepared by, as JSON."""
    sources: dict[str, dict[str, int | str]]
    """Path -> size and digest (or modification time) of every file read."""
    fingerprint: str
    digest: str
    files: dict[str, int] = field(default_factory=dict)
    """Path in the folder -> size of every file but the manifest."""
    format: int = FORMAT


def _manifest_from_json(raw: dict) -> Manifest:
    raw = dict(raw)
    raw["entities"] = {
        name: EntityInfo(**{**e, "features": {f: FeatureInfo(**i) for f, i in e["features"].items()}})
        for name, e in raw["entities"].items()
    }
    raw["tasks"] = {name: TaskInfo(**t) for name, t in raw["tasks"].items()}
    return Manifest(**raw)


def manifest_to_json(manifest: Manifest) -> str:
    """The manifest as indented JSON, keys in a stable order."""
    return json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n"


def declaration_json(schema: Schema) -> dict[str, Any]:
    """The schema as JSON, without what a config adds to it."""
    content = asdict(schema)
    return json.loads(json.dumps({part.name: content[part.name] for part in fields(Schema)}))


def prepared_part(declaration: dict[str, Any]) -> dict[str, Any]:
    """A declaration (as JSON) without what training may change and need not prepare again.

    That is widths and dtypes of tables, dropout of ids.
    """
    tables = {
        name: {key: value for key, value in table.items() if key != "dtype"} | {"dim": None}
        for name, table in declaration["tables"].items()
    }
    entities = {
        name: entity
        | {
            "features": {
                f: {**feature, "dropout": None} if feature["kind"] == "id" else feature
                for f, feature in entity["features"].items()
            }
        }
        for name, entity in declaration["entities"].items()
    }
    return {**declaration, "tables": tables, "entities": entities}


def _differences(key: str, prepared: Any, declared: Any) -> list[str]:
    """Dotted keys at which two declarations (as JSON) differ."""
    if isinstance(prepared, dict) and isinstance(declared, dict):
        names = {**prepared, **declared}
        return [d for n in names for d in _differences(f"{key}.{n}", prepared.get(n), declared.get(n))]
    return [] if prepared == declared else [key]


def _remedy(path: Path) -> str:
    return f"delete '{path}' and prepare again"


@dataclass(frozen=True)
class PreparedDataset:
    """An opened prepared dataset: the manifest, and where its parts lie."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> "PreparedDataset":
        """Opens a folder, or the local copy of one that a URL names.

        Raises:
            UserError: no such folder, no whole dataset in it, or one of another format.
        """
        path = Path(local_copy(str(path), mark=MANIFEST))
        if not (path / MANIFEST).is_file():
            raise UserError(f"no prepared dataset at '{path}': run `torchrec-mt prepare` with the same config first")
        with reading(path / MANIFEST, _remedy(path)):
            raw = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            if not isinstance(raw, dict):
                raise ValueError("it holds no object")
        if raw.get("format") != FORMAT:
            raise UserError(
                f"'{path}' has dataset format {raw.get('format')!r}, this version reads {FORMAT}: prepare again"
            )
        try:
            return cls(path, _manifest_from_json(raw))
        except (KeyError, TypeError, AttributeError) as error:  # a key too few or too many, a value of another shape
            raise UserError(f"'{path / MANIFEST}' is damaged ({error}): {_remedy(path)}") from None

    def check_declaration(self, schema: Schema) -> None:
        """Refuses to be used with another declaration than it was prepared by.

        Raises:
            UserError: names the first keys that differ.
        """
        prepared, declared = (prepared_part(d) for d in (self.manifest.declaration, declaration_json(schema)))
        found = [
            difference
            for part in ("tables", "entities", "tasks", "split")
            for difference in _differences(f"dataset.{part}", prepared.get(part), declared[part])
        ]
        if found:
            raise UserError(
                f"'{self.path}' was prepared by another declaration ({', '.join(found[:3])} differ): "
                "run `torchrec-mt prepare` with this config first"
            )

    def entity_path(self, entity: str) -> Path:
        return self.path / "entities" / f"{entity}.parquet"

    def store_path(self, entity: str) -> Path:
        return self.path / "store" / entity

    def vocabulary_path(self, table: str) -> Path:
        return self.path / "vocabulary" / f"{table}.parquet"

    def pairs_path(self, task: str, split: Split) -> Path:
        return self.path / "pairs" / task / f"{split}.parquet"

    def truth_path(self, task: str) -> Path:
        return self.path / "truth" / f"{task}.parquet"

    def frequencies_path(self, task: str, end: End) -> Path:
        return self.path / "frequencies" / task / f"{end}s.parquet"

    def known_path(self, task: str) -> Path:
        return self.path / "known" / task

    def negatives_path(self, task: str) -> Path:
        return self.path / "negatives" / task

    def reading(self, file: Path) -> AbstractContextManager[None]:
        """Around the reading of one of its files: a damaged one is a UserError that says to prepare again."""
        return reading(file, _remedy(self.path))

    def mapped(self) -> Mapped:
        """The files that training reads from beginning to end."""
        patterns = ("store/*/*.npy", "known/*/*.npy", "negatives/*/*.npy", "pairs/*/train.parquet")
        return Mapped((file for pattern in patterns for file in self.path.glob(pattern)), _remedy(self.path))

    def read(self, file: Path, columns: list[str] | None = None) -> pa.Table:
        """One of its Parquet files."""
        with self.reading(file):
            return pq.read_table(file, columns=columns)

    def pairs(self, task: str, split: Split) -> dict[str, np.ndarray]:
        """All pairs of a split as arrays: anchor_B, candidate_B (int64), count_B, weight_B, grade_B (float32)."""
        table = self.read(self.pairs_path(task, split))
        return {name: table[name].to_numpy() for name in table.column_names}

    def frequencies(self, task: str) -> np.ndarray:
        """Training pairs per candidate, count_N (int64)."""
        return self.read(self.frequencies_path(task, "candidate"))["train_count"].to_numpy()

    def anchor_frequencies(self, task: str) -> np.ndarray:
        """Training pairs per anchor, count_N (int64)."""
        return self.read(self.frequencies_path(task, "anchor"))["train_count"].to_numpy()

    def known_candidates(self, task: str) -> Links:
        """Per anchor the candidates that are trained with it or ignored: never its negatives. Trained tasks only."""
        return self._links(self.known_path(task), "candidates")

    def known_anchors(self, task: str) -> Links:
        """The same pairs per candidate. Trained tasks only."""
        return self._links(self.known_path(task), "anchors")

    def ignored_candidates(self, task: str) -> Links | None:
        """Per anchor the candidates whose role is "ignore" (they are among the known); None where no role says so."""
        if "ignored_pairs" not in self.manifest.tasks[task].notes:
            return None
        return self._links(self.known_path(task), "ignored")

    def named_negatives(self, task: str) -> Links | None:
        """Per anchor the candidates that the data names as its negatives; None where the task names none."""
        if "named_negatives" not in self.manifest.tasks[task].notes:
            return None
        return self._links(self.negatives_path(task), "candidates")

    def _links(self, folder: Path, name: str) -> Links:
        with self.reading(folder / f"{name}.values.npy"):
            return Links.open(folder, name)

    def train_counts(self, entity: str) -> np.ndarray:
        """Training pairs, any trained task, that hold the entity: count_N (int64). Zero means cold."""
        return self.read(self.entity_path(entity), ["train_count"])["train_count"].to_numpy()
