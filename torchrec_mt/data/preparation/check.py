"""Does a schema fit together? The first step of preparation, before any file is opened: every message names its key."""

import re
from collections.abc import Iterable

import Stemmer

from torchrec_mt.data.preparation.check_tasks import check_task
from torchrec_mt.data.preparation.refuse import names_of, require
from torchrec_mt.errors import UserError
from torchrec_mt.schema import (
    CategoriesFeature,
    CategoryFeature,
    Entity,
    Feature,
    GroupPairs,
    GroupSplit,
    IdFeature,
    NumberFeature,
    Schema,
    Table,
    TextFeature,
    TimeSplit,
    VectorFeature,
    split_shares,
)

_NAME = re.compile(r"[\w-]+", re.ASCII)
_TAKEN = ("id", "train_count")


def check_schema(schema: Schema) -> None:
    """Refuses a schema whose parts contradict each other.

    Raises:
        UserError: names the key (as in `tasks.complement.pairs.order`), its value and what is allowed.
    """
    for kind, names in (("tables", schema.tables), ("entities", schema.entities), ("tasks", schema.tasks)):
        _check_names(kind, names)
    require(schema.entities, "entities", "declare at least one entity")
    require(schema.trained_tasks, "tasks", "declare at least one task without `trained_as`")
    require(
        0 <= schema.max_rejected_share <= 1,
        "max_rejected_share",
        f"{schema.max_rejected_share} is not a share (0 to 1)",
    )
    for name, table in schema.tables.items():
        _check_table(f"tables.{name}", table)
    for name, entity in schema.entities.items():
        _check_entity(f"entities.{name}", entity, schema)
    _check_sharing(schema)
    _check_split(schema.split)
    for name, task in schema.tasks.items():
        check_task(name, task, schema)
    minus_order(schema)


def _check_names(key: str, names: Iterable[str]) -> None:
    """Names become file names, columns, and parts of dotted keys."""
    seen: dict[str, str] = {}
    for name in names:
        require(_NAME.fullmatch(name), f"{key}.{name}", "a name is letters, digits, '_' and '-'")
        twin = seen.setdefault(name.lower(), name)
        require(twin == name, f"{key}.{name}", f"'{twin}' differs in case only; choose another name for one of them")


def minus_order(schema: Schema) -> list[str]:
    """Task names such that every task comes after those it names in `minus`.

    Raises:
        UserError: tasks that take each other away in a circle.
    """
    waiting = {
        name: set(task.pairs.minus) if isinstance(task.pairs, GroupPairs) else set()
        for name, task in schema.tasks.items()
    }
    order: list[str] = []
    while waiting:
        ready = [name for name, needs in waiting.items() if not needs & waiting.keys()]
        if not ready:
            first = next(iter(waiting))
            raise UserError(
                f"tasks.{first}.pairs.minus: the tasks {names_of(waiting)} take each other away in a circle"
            )
        order += ready
        for name in ready:
            del waiting[name]
    return order


def _check_table(key: str, table: Table) -> None:
    require(table.dim > 0 and table.dim % 4 == 0, f"{key}.dim", f"{table.dim} is not a positive multiple of 4")
    require(
        table.max_rows >= 2,
        f"{key}.max_rows",
        f"{table.max_rows} leaves no row beside the out-of-vocabulary row; give 2 or more",
    )
    require(table.min_count >= 1, f"{key}.min_count", f"{table.min_count} is below 1")


def _check_entity(key: str, entity: Entity, schema: Schema) -> None:
    require(
        entity.features, f"{key}.features", "declare at least one; an id alone is { kind = 'id', table = 'A TABLE' }"
    )
    _check_names(f"{key}.features", entity.features)
    for name, feature in entity.features.items():
        here = f"{key}.features.{name}"
        clash = name.lower() in _TAKEN or name.lower().endswith(("__weight", "__text"))
        require(not clash, here, "this name is used by the prepared dataset itself; choose another")
        table = getattr(feature, "table", None)
        if table is not None:
            require(
                table in schema.tables,
                f"{here}.table",
                f"unknown table '{table}' (declared: {names_of(schema.tables)})",
            )
        _check_feature(here, feature)


def _check_feature(key: str, feature: Feature) -> None:
    match feature:
        case IdFeature():
            require(0 <= feature.dropout < 1, f"{key}.dropout", f"{feature.dropout} is not in [0, 1)")
        case CategoriesFeature():
            require(
                feature.separator != "",
                f"{key}.separator",
                "an empty separator splits nothing; leave it out for a list column",
            )
            require(feature.max_values >= 1, f"{key}.max_values", f"{feature.max_values} is below 1")
        case TextFeature():
            stems = Stemmer.algorithms()
            require(feature.columns, f"{key}.columns", "name at least one column")
            require(
                feature.stem == "none" or feature.stem in stems,
                f"{key}.stem",
                f"'{feature.stem}' is neither 'none' nor one of {names_of(stems)}",
            )
            lengths = feature.char_ngrams
            require(
                all(n >= 1 for n in lengths) and len(set(lengths)) == len(lengths),
                f"{key}.char_ngrams",
                f"{list(lengths)} must be distinct lengths of 1 or more",
            )
            require(feature.max_tokens >= 1, f"{key}.max_tokens", f"{feature.max_tokens} is below 1")
        case VectorFeature():
            require(feature.dim >= 1, f"{key}.dim", f"{feature.dim} is below 1")
        case CategoryFeature() | NumberFeature():
            pass


def _check_sharing(schema: Schema) -> None:
    """A table holds words, or values, or ids: their vocabularies are counted differently."""
    users: dict[str, dict[str, str]] = {name: {} for name in schema.tables}
    for entity_name, entity in schema.entities.items():
        for name, feature in entity.features.items():
            if isinstance(feature, NumberFeature | VectorFeature):
                continue
            family = "category" if feature.kind == "categories" else feature.kind
            users[feature.table][f"entities.{entity_name}.features.{name}"] = family
    for table, keys in users.items():
        require(keys, f"tables.{table}", "no feature uses this table; remove it or name it in a feature")
        families = sorted(set(keys.values()))
        require(
            len(families) == 1,
            f"tables.{table}",
            f"features of different kinds ({', '.join(families)}) share it: {names_of(keys)}; give each its own table",
        )


def _check_split(split: TimeSplit | GroupSplit) -> None:
    valid_share, test_share = split_shares(split)
    require(valid_share >= 0 and test_share >= 0, "split", "valid_share and test_share must not be negative")
    require(
        valid_share + test_share < 1,
        "split",
        f"valid_share {valid_share} + test_share {test_share} leave nothing to train on",
    )
    if isinstance(split, GroupSplit):
        require(split.column, "split.column", "name at least one column")
        return
    require(
        (split.valid_from is None) == (split.test_from is None),
        "split.valid_from",
        "give both valid_from and test_from, or neither (shares are used then)",
    )
    for share in ("valid_share", "test_share"):
        require(
            split.valid_from is None or getattr(split, share) is None,
            f"split.{share}",
            f"{getattr(split, share)} has no effect beside valid_from and test_from; remove the one or the others",
        )
    match split.valid_from, split.test_from:
        case (str() as valid, str() as test) if valid > test:
            raise UserError(f"split.test_from: {test!r} lies before valid_from {valid!r}")
        case (int() | float() as valid, int() | float() as test) if valid > test:
            raise UserError(f"split.test_from: {test!r} lies before valid_from {valid!r}")
