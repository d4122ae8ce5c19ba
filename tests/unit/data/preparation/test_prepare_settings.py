"""Settings that contradict each other, have no effect or mean nothing are refused before any file is opened."""

import re

import pytest

from tests.raw_shop import (
    given,
    groups,
    make_schema,
    with_features,
    with_pairs,
)
from torchrec_mt.data.preparation import check_schema
from torchrec_mt.errors import UserError
from torchrec_mt.schema import (
    CategoryFeature,
    Entity,
    GroupSplit,
    NumberFeature,
    Schema,
    Task,
    TimeSplit,
)

NAN, INF = float("nan"), float("inf")

SETTINGS: dict[str, tuple[Schema, str]] = {
    "forward without order": (with_pairs(groups(direction="forward")), "tasks.together.pairs.order"),
    "time split without time": (with_pairs(given(time=None)), "tasks.search.pairs.time"),
    "minus an unknown task": (with_pairs(groups(minus=("serach",))), "serach"),
    "unknown entity": (
        make_schema(tasks={"x": Task(anchor="user", candidate="product", pairs=given())}),
        "tasks.x.anchor",
    ),
    "unknown table": (with_features(k=CategoryFeature(kind="category", column="kind", table="brands")), "brands"),
    "groups of two entities": (
        make_schema(tasks={"x": Task(anchor="query", candidate="product", pairs=groups())}),
        "tasks.x",
    ),
    "trained as nothing": (
        make_schema(tasks={"x": Task(anchor="query", candidate="product", pairs=given(), trained_as="y")}),
        "trained_as",
    ),
    "label beside grade": (
        with_pairs(given(label="esci", roles={"E": 1.0}, grade="g")),
        "tasks.search.pairs.label: 'esci' contradicts tasks.search.pairs.grade = 'g'",
    ),
    "label without roles": (
        with_pairs(given(label="esci")),
        "tasks.search.pairs.label: 'esci' .*tasks.search.pairs.roles",
    ),
    "roles without label": (
        with_pairs(given(roles={"E": 1.0})),
        "tasks.search.pairs.roles: .*tasks.search.pairs.label",
    ),
    "a role that is not finite": (
        with_pairs(given(label="esci", roles={"E": 1.0, "S": INF})),
        "tasks.search.pairs.roles.S: inf .*'negative'",
    ),
    "a role that is no number": (
        with_pairs(given(label="esci", roles={"E": NAN})),
        "tasks.search.pairs.roles.E: nan .*'negative'",
    ),
    "a role of nothing": (
        with_pairs(given(label="esci", roles={"E": 1.0, "S": 0.0})),
        "tasks.search.pairs.roles.S: 0.0 .*'ignore'",
    ),
    "an unknown role": (
        with_pairs(given(label="esci", roles={"E": 1.0, "S": "positive"})),
        "tasks.search.pairs.roles.S: 'positive' .*'ignore'",
    ),
    "roles that leave nothing to train": (
        with_pairs(given(label="esci", roles={"C": "negative", "S": "ignore"})),
        "tasks.search.pairs.roles: .*'C', 'S'",
    ),
    "min_grade beside label": (
        with_pairs(given(label="esci", roles={"E": 1.0}, min_grade=2.0)),
        "tasks.search.pairs.min_grade: 2.0 .*tasks.search.pairs.label",
    ),
    "negatives of a task that is only evaluated": (
        make_schema(
            tasks={
                **make_schema().tasks,
                "x": Task(anchor="query", candidate="product", pairs=given(negatives="shown"), trained_as="search"),
            }
        ),
        "tasks.x.pairs.negatives: 'shown' .*trained_as",
    ),
    "a name with a dot": (make_schema(tasks={"search.v2": make_schema().tasks["search"]}), "tasks.search.v2"),
    "names that differ in case": (
        with_features(Title=NumberFeature(kind="number", column="price")),
        "entities.product.features.Title: 'title'",
    ),
    "a name of the prepared dataset": (
        with_features(ID=NumberFeature(kind="number", column="price")),
        "entities.product.features.ID",
    ),
    "an entity without features": (
        make_schema(entities={**make_schema().entities, "user": Entity(path="users.csv", id="user")}),
        "entities.user.features: declare at least one",
    ),
    "group under a split by time": (with_pairs(given(group=("session",))), "tasks.search.pairs.group: ['session'] has"),
    "time under a split by group": (
        make_schema(split=GroupSplit(kind="group", column=("session",))),
        "tasks.search.pairs.time: 'time' has no effect",
    ),
    "shares beside moments": (
        make_schema(split=TimeSplit(kind="time", valid_from=1, test_from=2, test_share=0.1)),
        "split.test_share: 0.1 has no effect",
    ),
    "negative support": (with_pairs(groups(min_support=-1)), "min_support"),
    "shares above one": (
        make_schema(split=TimeSplit(kind="time", valid_share=0.1, test_share=0.95)),
        "split",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_contradict(case: str) -> None:
    schema, key = SETTINGS[case]
    with pytest.raises(UserError, match=re.escape(key).replace(r"\ \.\*", ".*")):
        check_schema(schema)
