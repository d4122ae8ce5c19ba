"""Rows that cannot be used: counted up to a share, above it one message with column, count and remedy."""

from pathlib import Path

import pytest

from tests.raw_shop import BASKETS, CLICKS, Rows, by_group, given, make_schema, run, with_pairs
from torchrec_mt.errors import UserError
from torchrec_mt.schema import GroupSplit, Schema


def without(rows: Rows, column: str, *numbers: int) -> Rows:
    return {**rows, column: [None if i in numbers else value for i, value in enumerate(rows[column])]}


BY_BASKET = by_group(with_pairs(given(group=("visit",))), GroupSplit(kind="group", column=("basket",)))
VISITS = {**CLICKS, "visit": list("12345678")}
MISSING: dict[str, tuple[Schema, dict[str, Rows], str]] = {
    "time": (
        make_schema(),
        {"clicks": without(CLICKS, "time", 0, 1)},
        "of 8 rows of 'clicks.parquet' 2 have no time (column 'time' is null)",
    ),
    "group": (
        make_schema(),
        {"baskets": without(BASKETS, "basket", 3)},
        "of 9 rows of 'baskets.parquet' 1 have no group (column 'basket' is null)",
    ),
    "split group": (
        BY_BASKET,
        {"clicks": without(VISITS, "visit", 3)},
        "of 8 rows of 'clicks.parquet' 1 have no split group (column 'visit' is null)",
    ),
}


@pytest.mark.parametrize("case", MISSING)
def test_rows_without_time_or_group_fall_under_the_share(tmp_path: Path, case: str) -> None:
    schema, tables, said = MISSING[case]
    with pytest.raises(UserError) as caught:
        run(tmp_path, schema, **tables)
    assert said in str(caught.value)
    assert "fill the column or drop these rows or raise the share" in str(caught.value)
    assert "add the entities" not in str(caught.value)


def test_they_are_counted_below_it(tmp_path: Path) -> None:
    dataset = run(tmp_path, make_schema(max_rejected_share=0.25), clicks=without(CLICKS, "time", 0, 1))
    assert dataset.manifest.tasks["search"].rejected["no time"] == 2


def test_they_count_together_with_unknown_ids(tmp_path: Path) -> None:
    clicks = without({**CLICKS, "sku": ["ghost", *CLICKS["sku"][1:]]}, "time", 1)
    with pytest.raises(UserError) as caught:
        run(tmp_path, make_schema(max_rejected_share=0.2), clicks=clicks)
    assert "1 name an unknown entity 'product' in column 'sku' (unknown candidate 'ghost')" in str(caught.value)
    assert "1 have no time" in str(caught.value)


@pytest.mark.parametrize(("first", "values"), [("A", "none"), ("a", "only 1")])
def test_a_wrong_column_of_ids_is_told_as_such(tmp_path: Path, first: str, values: str) -> None:
    clicks = {name: 2 * column for name, column in CLICKS.items()}
    clicks["sku"] = [first, *(sku.upper() for sku in clicks["sku"][1:])]
    with pytest.raises(UserError) as caught:
        run(tmp_path, make_schema(), clicks=clicks)
    assert f"{values} has an id of entity 'product' in column 'sku'" in str(caught.value)
    assert "(which holds 'A', 'B', 'C'; its ids are as 'a', 'b'): another column" in str(caught.value)
