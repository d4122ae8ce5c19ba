"""What the data and the losses demand of the model: tables, entities, tasks. No module is built here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torchrec_mt.schema import TABLE_PREFIX, own_table


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One embedding table as the model needs it.

    Args:
        name: TABLE, or TABLE@TASK of a task's own. rows, dim: its shape. keys: that read it. dtype: of its rows.
        task: whose own it is; None: all tasks read it. copy_of: the table whose vocabulary its rows have; None: itself.
    """

    name: str
    rows: int
    dim: int
    keys: tuple[str, ...]
    dtype: Literal["float32", "float16"] = "float32"
    task: str | None = None
    copy_of: str | None = None

    @property
    def vocabulary(self) -> str:
        """The dataset's table of which a row here is a row."""
        return self.copy_of or self.name

    @property
    def num_bytes(self) -> int:
        """Of its weights."""
        return self.rows * self.dim * (2 if self.dtype == "float16" else 4)


class Lookup(NamedTuple):
    """A feature as it is looked up: its key, and the task whose own table is read (None: the one of all tasks)."""

    key: str
    task: str | None = None


@dataclass(frozen=True, kw_only=True)
class EntitySpec:
    """What a tower reads.

    Args:
        keys, widths: of its sparse features. dense_dim: width of its dense features together.
        readers: in whose tables the sparse features are looked up, in this order; None: in those of all tasks.
    """

    keys: tuple[str, ...]
    widths: tuple[int, ...]
    dense_dim: int
    readers: tuple[str | None, ...] = (None,)

    @property
    def lookups(self) -> list[Lookup]:
        """Of every reader after the other."""
        return [Lookup(key, reader) for reader in self.readers for key in self.keys]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What the data and the losses demand of the model.

    Args:
        tasks: (anchor, candidate) entity per trained task. biased: tasks whose loss has a learned bias.
    """

    tables: tuple[TableSpec, ...]
    entities: dict[str, EntitySpec]
    tasks: dict[str, tuple[str, str]]
    biased: tuple[str, ...] = ()

    @property
    def vocabularies(self) -> dict[str, str]:
        """By table the dataset's table of which its rows are rows."""
        return {table.name: table.vocabulary for table in self.tables}


def with_own_tables(spec: ModelSpec, *, shared: bool, own: bool) -> ModelSpec:
    """The spec with a copy of the tables for each task, TABLE@TASK, of those that its entities read.

    Args:
        spec: with the tables of all tasks. shared: keep these. own: add the copies.
    """
    tasks = list(spec.tasks) if own else []
    entities = {
        name: replace(
            entity, readers=(*([None] if shared else []), *(task for task in tasks if name in spec.tasks[task]))
        )
        for name, entity in spec.entities.items()
    }
    tables = [*spec.tables] if shared else []
    for task in tasks:
        read = {key for name in spec.tasks[task] for key in spec.entities[name].keys}
        for table in spec.tables:
            keys = tuple(key for key in table.keys if key in read)
            if keys:
                own_name = own_table(table.name, task)
                tables.append(replace(table, name=own_name, keys=keys, task=task, copy_of=table.name))
    return replace(spec, tables=tuple(tables), entities=entities)


def names_of_lookups(tables: Sequence[TableSpec]) -> Mapping[Lookup, str]:
    """How TorchRec names what it looked up: by key, or KEY@TABLE where several tables read the key."""
    readers: dict[str, int] = {}
    for table in tables:
        for key in table.keys:
            readers[key] = readers.get(key, 0) + 1
    return {
        Lookup(key, table.task): key if readers[key] == 1 else f"{key}@{TABLE_PREFIX}{table.name}"
        for table in tables
        for key in table.keys
    }
