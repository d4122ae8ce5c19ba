"""Preparation from end to end: raw tables and a schema in, a prepared dataset out (see `data/dataset.py`).

check -> entities -> events -> split -> pairs -> rows -> bags, vocabularies -> write -> digest -> manifest
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ibis.expr.types as ir

from torchrec_mt.data.dataset import EntityInfo, Manifest, PreparedDataset, TaskInfo, declaration_json
from torchrec_mt.data.preparation.bags import BagReader, LongBags, take_apart
from torchrec_mt.data.preparation.check import check_schema
from torchrec_mt.data.preparation.digest import content_digest
from torchrec_mt.data.preparation.earlier import look, written_files
from torchrec_mt.data.preparation.encode import write_entity
from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.data.preparation.entities import EntityTable, compared_columns, load_entity, order_rows
from torchrec_mt.data.preparation.folder import SCRATCH, clear_leftovers, finish, partial_folder
from torchrec_mt.data.preparation.pairs import TaskPairs, make_pairs
from torchrec_mt.data.preparation.sources import Source, all_sources, describe_files, fingerprint
from torchrec_mt.data.preparation.split import describe_split
from torchrec_mt.data.preparation.tables import write_task, write_truth, write_vocabulary
from torchrec_mt.data.preparation.vocabulary import Vocabulary, build_vocabulary
from torchrec_mt.schema import NumberFeature, Schema, SparseFeature, TextFeature, VectorFeature

Progress = Callable[[str, int, int], None]


class PreparedResult(NamedTuple):
    """The prepared dataset, whether this run made it (False: it was there already), and why it replaced an earlier."""

    dataset: PreparedDataset
    fresh: bool
    why: str = ""


def prepare(
    schema: Schema,
    *,
    name: str,
    raw: Path,
    output: Path,
    progress: Progress | None = None,
    permutation_check: bool = False,
    source_fingerprint: str = "",
) -> PreparedResult:
    """Prepares a dataset, or opens the one already prepared from the same input.

    Args:
        name: what the dataset is called in its manifest.
        raw: folder that relative paths of the schema start from.
        output: folder to write; an older prepared dataset there is replaced at the end.
        progress: called as (stage, done, total).
        permutation_check: also count the pairs that each group rule finds when items are dealt anew to the groups.
        source_fingerprint: anything else the input depends on (settings of a generator, say).

    Raises:
        UserError: a mistake in the schema, the data, or the place to write to; what was there before is untouched.
    """
    raw, output = Path(raw), Path(output)
    if output.is_symlink():
        output = output.resolve()  # replace the folder, not the link to it
    check_schema(schema)
    sources = all_sources(schema, raw)
    files = describe_files(sources, raw)
    print_of_input = fingerprint(schema, name, files, source_fingerprint)
    earlier = look(output, print_of_input, needs_check=permutation_check)
    if earlier.dataset is not None:
        clear_leftovers(output)
        return PreparedResult(earlier.dataset, fresh=False)
    with partial_folder(output) as folder:
        with Engine(folder / SCRATCH) as engine:
            work = _Work(engine, schema, sources, folder, progress or _silent)
            content = work.run(permutation_check)
        work.progress("digest", 0, 1)
        digest = content_digest(folder)
        work.progress("digest", 1, 1)
        manifest = Manifest(
            name=name,
            **content,
            declaration=declaration_json(schema),
            sources=files,
            files=written_files(folder),
            fingerprint=print_of_input,
            digest=digest,
        )
        return PreparedResult(finish(folder, output, manifest), fresh=True, why=earlier.why)


def _silent(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class _Work:
    engine: Engine
    schema: Schema
    sources: dict[str, Source]
    folder: Path
    progress: Progress

    def run(self, permutation_check: bool) -> dict:
        """Writes everything but the manifest; returns its tables, entities, tasks and split."""
        entities = self._load_entities()
        steps = iter(range(1, 2 * len(self.schema.tasks) + 1))
        pairs, cut = make_pairs(
            self.engine,
            self.schema,
            entities,
            self.sources,
            permutation_check=permutation_check,
            step=lambda: self.progress("pairs", next(steps), 2 * len(self.schema.tasks)),
        )
        rows = {
            name: order_rows(self.engine, entity, self._train_keys(name, pairs)) for name, entity in entities.items()
        }
        dataset = PreparedDataset(self.folder, None)  # type: ignore[arg-type]  # for its paths
        tasks = self._write_tasks(dataset, pairs, rows, entities)
        tables, infos = self._write_entities(dataset, entities, rows)
        return {"tables": tables, "entities": infos, "tasks": tasks, "split": describe_split(self.schema, cut)}

    def _load_entities(self) -> dict[str, EntityTable]:
        entities = {}
        for done, (name, entity) in enumerate(self.schema.entities.items(), 1):
            source = self.sources[f"entities.{name}.path"]
            entities[name] = load_entity(self.engine, name, entity, source, compared_columns(self.schema, name))
            self.progress("entities", done, len(self.schema.entities))
        return entities

    def _train_keys(self, entity: str, pairs: dict[str, TaskPairs]) -> list[ir.Table]:
        keys = []
        for name, task in self.schema.trained_tasks.items():
            train = pairs[name].table.filter(pairs[name].table.part == 0)
            keys += [train.select(key=end) for end in ("anchor", "candidate") if getattr(task, end) == entity]
        return keys

    def _write_tasks(
        self,
        dataset: PreparedDataset,
        pairs: dict[str, TaskPairs],
        rows: dict[str, ir.Table],
        entities: dict[str, EntityTable],
    ) -> dict[str, TaskInfo]:
        infos = {}
        counts = {name: entity.count for name, entity in entities.items()}
        for done, (name, task) in enumerate(self.schema.tasks.items(), 1):
            info = write_task(self.engine, dataset, name, task, pairs[name], rows, counts)
            if task.truth is not None:
                source = self.sources[f"tasks.{name}.truth.path"]
                unknown = write_truth(self.engine, dataset, name, task, task.truth, source, rows)
                info.notes.update({"unknown_in_truth": unknown} if unknown else {})
            infos[name] = info
            self.progress("write pairs", done, len(self.schema.tasks))
        return infos

    def _write_entities(
        self, dataset: PreparedDataset, entities: dict[str, EntityTable], rows: dict[str, ir.Table]
    ) -> tuple[dict[str, int], dict[str, EntityInfo]]:
        frames = {name: self._frame(entity, rows[name]) for name, entity in entities.items()}
        sparse = self._sparse_features()
        long: dict[tuple[str, str], LongBags] = {}
        for done, ((entity_name, name), feature) in enumerate(sparse.items(), 1):
            long[entity_name, name] = take_apart(self.engine, frames[entity_name], name, feature)
            self.progress("features", done, len(sparse))
        vocabularies: dict[str, Vocabulary] = {}
        for table, declared in self.schema.tables.items():
            users = [key for key, feature in sparse.items() if feature.table == table]
            documents = sum(entities[key[0]].count for key in users if isinstance(sparse[key], TextFeature))
            vocabularies[table] = build_vocabulary([long[key].counts for key in users], declared, documents)
            write_vocabulary(dataset, table, vocabularies[table])
        infos = {}
        for done, (name, entity) in enumerate(self.schema.entities.items(), 1):
            readers = {
                f: BagReader(self.engine, long[e, f], feature, vocabularies[feature.table])
                for (e, f), feature in sparse.items()
                if e == name
            }
            infos[name] = write_entity(self.engine, dataset, name, entity, frames[name], readers)
            self.progress("write entities", done, len(self.schema.entities))
        return {table: vocabulary.rows for table, vocabulary in vocabularies.items()}, infos

    def _frame(self, entity: EntityTable, rows: ir.Table) -> ir.Table:
        return self.engine.cache(
            entity.table.drop("id").inner_join(rows.select("key", "id", "row", "train_count"), "key")
        )

    def _sparse_features(self) -> dict[tuple[str, str], SparseFeature]:
        return {
            (entity_name, name): feature
            for entity_name, entity in self.schema.entities.items()
            for name, feature in entity.features.items()
            if not isinstance(feature, NumberFeature | VectorFeature)
        }
