"""Sources without the split's columns: judgements without time or group, event tables with groups of their own."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.raw_shop import CLICKS, SPLIT, Rows, by_group, given, groups, make_schema, pairs, run, with_pairs
from torchrec_mt.data.dataset import SPLITS
from torchrec_mt.data.preparation import check_schema
from torchrec_mt.errors import UserError
from torchrec_mt.schema import GroupPairs, GroupSplit, Schema, Task, TimeSplit

JUDGED: Rows = {"query": ["q1", "q2"], "sku": ["c", "e"]}
ALL_TEST = "none: all pairs are in the test part"


def judged(schema: Schema) -> Schema:
    """The schema and judgements without time or group, answered as search."""
    rule = given(path="judged.parquet", time=None)
    task = Task(anchor="query", candidate="product", pairs=rule, trained_as="search")
    return replace(schema, tasks={**schema.tasks, "judged": task})


@pytest.mark.parametrize("split", [SPLIT, TimeSplit(kind="time"), GroupSplit(kind="group", column=("visit",))])
def test_judgements_without_time_or_group_are_tested(tmp_path: Path, split: TimeSplit | GroupSplit) -> None:
    schema = make_schema(split=split)
    schema = judged(by_group(schema, split) if isinstance(split, GroupSplit) else schema)
    visits = {**CLICKS, "visit": list("12345678")}
    dataset = run(tmp_path, schema, judged=JUDGED, clicks=visits)
    assert [len(pairs(dataset, "judged", part)) for part in SPLITS] == [0, 0, 2]
    assert dataset.manifest.tasks["judged"].notes == {"split": ALL_TEST}
    assert "split" not in dataset.manifest.tasks["search"].notes


def test_a_trained_task_needs_its_time() -> None:
    with pytest.raises(UserError, match=r"tasks\.search\.pairs\.time: .*only a task with `trained_as` may leave"):
        check_schema(with_pairs(given(time=None)))


COUNT = 200
BASKETS: Rows = {
    "basket": [str(n // 2) for n in range(COUNT)],
    "sku": ["a", "b"] * (COUNT // 2),
    "day": [str(n // 20) for n in range(COUNT)],
}
CLICKS_OF_VISITS: Rows = {
    "query": ["q1"] * 100,
    "sku": ["a"] * 100,
    "visit": [str(n) for n in range(100)],
}
SPLIT_BY_VISIT = GroupSplit(kind="group", column=("visit",), valid_share=0.3, test_share=0.3)


def sides(tmp_path: Path, rule: GroupPairs) -> tuple[dict[str, float], dict[str, float | str]]:
    """Baskets per part (each gives the pair (a, b) once), and the notes."""
    schema = by_group(with_pairs(rule), SPLIT_BY_VISIT)
    dataset = run(tmp_path, schema, baskets=BASKETS, clicks=CLICKS_OF_VISITS)
    found = {part: pairs(dataset, "together", part).get(("a", "b"), 0.0) for part in SPLITS}
    return found, dataset.manifest.tasks["together"].notes


def test_groups_without_the_columns_of_the_split_are_split_by_their_own(tmp_path: Path) -> None:
    found, notes = sides(tmp_path, groups())
    assert notes == {"split": "by its own group: basket"}
    assert sum(found.values()) == COUNT / 2, "a basket on two sides would give no pair on either"
    assert min(found.values()) > 10


def test_groups_name_the_columns_they_are_split_by(tmp_path: Path) -> None:
    found, notes = sides(tmp_path, groups(split_group=("day",)))
    assert notes == {}
    assert sum(found.values()) == COUNT / 2
    assert all(count % 10 == 0 for count in found.values()), "ten baskets a day"


def test_split_group_has_no_effect_by_time() -> None:
    with pytest.raises(UserError, match=r"tasks\.together\.pairs\.split_group: \['day'\] has no effect"):
        check_schema(with_pairs(groups(split_group=("day",))))
