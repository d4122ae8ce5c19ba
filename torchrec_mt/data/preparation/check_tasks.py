"""Do a task's keys fit together, and with the schema? Part of `check.py`; every message names its key."""

import math

from torchrec_mt.data.preparation.refuse import names_of, require
from torchrec_mt.schema import GivenPairs, GroupPairs, GroupSplit, Schema, Task, TimeSplit


def check_task(name: str, task: Task, schema: Schema) -> None:
    """Refuses a task whose keys contradict each other or the schema.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    key = f"tasks.{name}"
    for end in ("anchor", "candidate"):
        entity = getattr(task, end)
        require(
            entity in schema.entities,
            f"{key}.{end}",
            f"unknown entity '{entity}' (declared: {names_of(schema.entities)})",
        )
    if task.trained_as is not None:
        other = schema.tasks.get(task.trained_as)
        require(
            other is not None and other.trained_as is None,
            f"{key}.trained_as",
            f"'{task.trained_as}' is no trained task (trained: {names_of(schema.trained_tasks)})",
        )
        same_ends = other is not None and (other.anchor, other.candidate) == (task.anchor, task.candidate)
        require(same_ends, f"{key}.trained_as", f"'{task.trained_as}' has another anchor or candidate entity")
    if isinstance(schema.split, TimeSplit):
        require(
            task.pairs.time or task.trained_as,
            f"{key}.pairs.time",
            "the split is by time: name the column that holds it (only a task with `trained_as` may leave it out: "
            "all its pairs are tested then)",
        )
    else:
        require(
            task.pairs.time is None,
            f"{key}.pairs.time",
            f"'{task.pairs.time}' has no effect: the split is by group; remove it or split by time",
        )
    match task.pairs:
        case GivenPairs() as given:
            _check_given(f"{key}.pairs", given, task, schema)
        case GroupPairs() as groups:
            _check_groups(f"{key}.pairs", name, task, groups, schema)


def _check_given(key: str, given: GivenPairs, task: Task, schema: Schema) -> None:
    require(given.min_grade >= 0, f"{key}.min_grade", f"{given.min_grade} is negative")
    if given.group:
        require(
            isinstance(schema.split, GroupSplit),
            f"{key}.group",
            f"{list(given.group)} has no effect: the split is by time; remove it or split by group",
        )
        columns = schema.split.column if isinstance(schema.split, GroupSplit) else ()
        require(
            len(given.group) == len(columns),
            f"{key}.group",
            f"{list(given.group)} has another length than split.column {list(columns)}",
        )
    require(
        given.negatives is None or task.trained_as is None,
        f"{key}.negatives",
        f"'{given.negatives}' has no effect: by `trained_as` this task is only evaluated; remove it",
    )
    if given.label is None:
        require(
            not given.roles,
            f"{key}.roles",
            f"roles of {names_of(given.roles)}, but of no column: name the column that holds them in {key}.label",
        )
    else:
        _check_roles(key, given, given.label)


def _check_roles(key: str, given: GivenPairs, label: str) -> None:
    require(
        given.grade is None,
        f"{key}.label",
        f"'{label}' contradicts {key}.grade = '{given.grade}': the roles of labels give the grades; remove one of them",
    )
    require(
        given.roles,
        f"{key}.label",
        f"'{label}' has labels without a meaning: say in {key}.roles what each is, as in {{ E = 1.0, I = 'negative' }}",
    )
    for value, role in given.roles.items():
        positive = isinstance(role, float | int) and math.isfinite(role) and role > 0
        require(
            positive or role in ("negative", "ignore"),
            f"{key}.roles.{value}",
            f"{role!r} is neither a finite number above 0 (a grade), nor 'negative', nor 'ignore'",
        )
    require(
        any(not isinstance(role, str) for role in given.roles.values()),
        f"{key}.roles",
        f"no label of {names_of(given.roles)} has a grade, so no pair is positive; give at least one a number above 0",
    )
    require(
        given.min_grade == GivenPairs.min_grade,
        f"{key}.min_grade",
        f"{given.min_grade} has no effect with {key}.label: every label with a number is positive; remove min_grade, "
        "and leave a label out of roles to leave its pairs out",
    )


def _check_groups(key: str, name: str, task: Task, groups: GroupPairs, schema: Schema) -> None:
    require(
        task.anchor == task.candidate,
        f"{key}.kind",
        f"group pairs need one entity at both ends, not anchor '{task.anchor}' and candidate '{task.candidate}'",
    )
    require(groups.group, f"{key}.group", "name at least one column")
    require(
        not groups.split_group or isinstance(schema.split, GroupSplit),
        f"{key}.split_group",
        f"{list(groups.split_group)} has no effect: the split is by time; remove it or split by group",
    )
    require(
        groups.direction == "both" or groups.order,
        f"{key}.order",
        "direction = 'forward' needs the column that orders the items of a group",
    )
    require(
        groups.direction == "forward" or not groups.order,
        f"{key}.order",
        "has no effect with direction = 'both'; remove it or set direction = 'forward'",
    )
    require(groups.min_support >= 1, f"{key}.min_support", f"{groups.min_support} is below 1")
    require(groups.min_lift >= 0, f"{key}.min_lift", f"{groups.min_lift} is negative")
    require(
        groups.max_group_size >= 2,
        f"{key}.max_group_size",
        f"{groups.max_group_size} is below 2: no group has two items then",
    )
    for other in groups.minus:
        require(
            other in schema.tasks and other != name,
            f"{key}.minus",
            f"'{other}' is not another task (declared: {names_of(schema.tasks)})",
        )
        ends = (schema.tasks[other].anchor, schema.tasks[other].candidate)
        require(
            ends == (task.anchor, task.candidate),
            f"{key}.minus",
            f"task '{other}' pairs {ends[0]} with {ends[1]}, not {task.anchor} with {task.candidate}",
        )
