"""Does a schema fit together? The first step of preparation, before any file is opened: every message names its key."""

import re
from collections.abc import Iterable

import Stemmer

from torchrec_mt.errors import UserError
from torchrec_mt.schema import (
    CategoriesFeature,
    CategoryFeature,
    Entity,
    Feature,
    GivenPairs,
    GroupPairs,
    GroupSplit,
    IdFeature,
    NumberFeature,
    Schema,
    Table,
    Task,
    TextFeature,
    TimeSplit,
    VectorFeature,
)

_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)
_TAKEN = ("id", "train_count")


def check_schema(schema: Schema) -> None:
    """Refuses a schema whose parts contradict each other.

    Raises:
        UserError: names the key (as in `tasks.complement.pairs.order`), its value and what is allowed.
    """
    for kind, names in (("tables", schema.tables), ("entities", schema.entities), ("tasks", schema.tasks)):
        for name in names:
            _require(
                _NAME.fullmatch(name),
                f"{kind}.{name}",
                "a name is letters, digits, '_', '-' and '.' (it becomes a file name)",
            )
    _require(schema.entities, "entities", "declare at least one entity")
    _require(schema.trained_tasks, "tasks", "declare at least one task without `trained_as`")
    _require(
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
        _check_task(name, task, schema)
    minus_order(schema)


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
            raise UserError(f"tasks.{first}.pairs.minus: the tasks {_names(waiting)} take each other away in a circle")
        order += ready
        for name in ready:
            del waiting[name]
    return order


def _require(condition: object, key: str, message: str) -> None:
    if not condition:
        raise UserError(f"{key}: {message}")


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"


def _check_table(key: str, table: Table) -> None:
    _require(table.dim > 0 and table.dim % 4 == 0, f"{key}.dim", f"{table.dim} is not a positive multiple of 4")
    _require(
        table.max_rows >= 2,
        f"{key}.max_rows",
        f"{table.max_rows} leaves no row beside the out-of-vocabulary row; give 2 or more",
    )
    _require(table.min_count >= 1, f"{key}.min_count", f"{table.min_count} is below 1")


def _check_entity(key: str, entity: Entity, schema: Schema) -> None:
    for name, feature in entity.features.items():
        here = f"{key}.features.{name}"
        _require(_NAME.fullmatch(name), here, "a name is letters, digits, '_', '-' and '.' (it becomes a file name)")
        clash = name in _TAKEN or name.endswith(("__weight", "__text"))
        _require(not clash, here, "this name is used by the prepared dataset itself; choose another")
        table = getattr(feature, "table", None)
        if table is not None:
            _require(
                table in schema.tables, f"{here}.table", f"unknown table '{table}' (declared: {_names(schema.tables)})"
            )
        _check_feature(here, feature)


def _check_feature(key: str, feature: Feature) -> None:
    match feature:
        case IdFeature():
            _require(0 <= feature.dropout < 1, f"{key}.dropout", f"{feature.dropout} is not in [0, 1)")
        case CategoriesFeature():
            _require(
                feature.separator != "",
                f"{key}.separator",
                "an empty separator splits nothing; leave it out for a list column",
            )
            _require(feature.max_values >= 1, f"{key}.max_values", f"{feature.max_values} is below 1")
        case TextFeature():
            stems = Stemmer.algorithms()
            _require(feature.columns, f"{key}.columns", "name at least one column")
            _require(
                feature.stem == "none" or feature.stem in stems,
                f"{key}.stem",
                f"'{feature.stem}' is neither 'none' nor one of {_names(stems)}",
            )
            lengths = feature.char_ngrams
            _require(
                all(n >= 1 for n in lengths) and len(set(lengths)) == len(lengths),
                f"{key}.char_ngrams",
                f"{list(lengths)} must be distinct lengths of 1 or more",
            )
            _require(feature.max_tokens >= 1, f"{key}.max_tokens", f"{feature.max_tokens} is below 1")
        case VectorFeature():
            _require(feature.dim >= 1, f"{key}.dim", f"{feature.dim} is below 1")
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
        _require(keys, f"tables.{table}", "no feature uses this table; remove it or name it in a feature")
        families = sorted(set(keys.values()))
        _require(
            len(families) == 1,
            f"tables.{table}",
            f"features of different kinds ({', '.join(families)}) share it: {_names(keys)}; give each its own table",
        )


def _check_split(split: TimeSplit | GroupSplit) -> None:
    _require(
        split.valid_share >= 0 and split.test_share >= 0, "split", "valid_share and test_share must not be negative"
    )
    _require(
        split.valid_share + split.test_share < 1,
        "split",
        f"valid_share {split.valid_share} + test_share {split.test_share} leave nothing to train on",
    )
    if isinstance(split, GroupSplit):
        _require(split.column, "split.column", "name at least one column")
        return
    _require(
        (split.valid_from is None) == (split.test_from is None),
        "split.valid_from",
        "give both valid_from and test_from, or neither (shares are used then)",
    )
    match split.valid_from, split.test_from:
        case (str() as valid, str() as test) if valid > test:
            raise UserError(f"split.test_from: {test!r} lies before valid_from {valid!r}")
        case (int() | float() as valid, int() | float() as test) if valid > test:
            raise UserError(f"split.test_from: {test!r} lies before valid_from {valid!r}")


def _check_task(name: str, task: Task, schema: Schema) -> None:
    key = f"tasks.{name}"
    for end in ("anchor", "candidate"):
        entity = getattr(task, end)
        _require(
            entity in schema.entities,
            f"{key}.{end}",
            f"unknown entity '{entity}' (declared: {_names(schema.entities)})",
        )
    if task.trained_as is not None:
        other = schema.tasks.get(task.trained_as)
        _require(
            other is not None and other.trained_as is None,
            f"{key}.trained_as",
            f"'{task.trained_as}' is no trained task (trained: {_names(schema.trained_tasks)})",
        )
        same_ends = other is not None and (other.anchor, other.candidate) == (task.anchor, task.candidate)
        _require(same_ends, f"{key}.trained_as", f"'{task.trained_as}' has another anchor or candidate entity")
    if isinstance(schema.split, TimeSplit):
        _require(task.pairs.time, f"{key}.pairs.time", "the split is by time: name the column that holds it")
    match task.pairs:
        case GivenPairs() as given:
            _require(given.min_grade >= 0, f"{key}.pairs.min_grade", f"{given.min_grade} is negative")
            if isinstance(schema.split, GroupSplit) and given.group:
                _require(
                    len(given.group) == len(schema.split.column),
                    f"{key}.pairs.group",
                    f"{list(given.group)} has another length than split.column {list(schema.split.column)}",
                )
        case GroupPairs() as groups:
            _check_groups(f"{key}.pairs", name, task, groups, schema)


def _check_groups(key: str, name: str, task: Task, groups: GroupPairs, schema: Schema) -> None:
    _require(
        task.anchor == task.candidate,
        f"{key}.kind",
        f"group pairs need one entity at both ends, not anchor '{task.anchor}' and candidate '{task.candidate}'",
    )
    _require(groups.group, f"{key}.group", "name at least one column")
    _require(
        groups.direction == "both" or groups.order,
        f"{key}.order",
        "direction = 'forward' needs the column that orders the items of a group",
    )
    _require(
        groups.direction == "forward" or not groups.order,
        f"{key}.order",
        "has no effect with direction = 'both'; remove it or set direction = 'forward'",
    )
    _require(groups.min_support >= 1, f"{key}.min_support", f"{groups.min_support} is below 1")
    _require(groups.min_lift >= 0, f"{key}.min_lift", f"{groups.min_lift} is negative")
    _require(
        groups.max_group_size >= 2,
        f"{key}.max_group_size",
        f"{groups.max_group_size} is below 2: no group has two items then",
    )
    for other in groups.minus:
        _require(
            other in schema.tasks and other != name,
            f"{key}.minus",
            f"'{other}' is not another task (declared: {_names(schema.tasks)})",
        )
        ends = (schema.tasks[other].anchor, schema.tasks[other].candidate)
        _require(
            ends == (task.anchor, task.candidate),
            f"{key}.minus",
            f"task '{other}' pairs {ends[0]} with {ends[1]}, not {task.anchor} with {task.candidate}",
        )
