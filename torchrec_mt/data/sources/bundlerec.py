"""BundleRec as raw tables: bundles of products that people named by what they are for (Sun et al., SIGIR 2022).

    products.parquet        product_id, domain, title, leaf, levels, category_text
    queries.parquet         query_id, domain, text
    intent_items.parquet    query_id, product_id, domain, bundle_id, session_id, user_id, time
    bundle_items.parquet    product_id, domain, bundle_id, session_id, user_id, time
    intent_items_DOMAIN.parquet, bundle_items_DOMAIN.parquet   the same of one domain, to score domains apart
    source.json             what they were made from, and whether they are whole

Decisions: ids are unique only within a domain, so every id here reads `domain:number`. Products without a title occur
in sessions only, never in a bundle: they are no anchor and no right answer of any task and have nothing to be encoded
by, so they are left out. Equal intents of a domain (but for case and blanks) are one query, because the anchor is the
text; a null intent names nothing and is left out, its bundle stays. Several bundles share a session, often with the
same intent: split by `session_id`, never by bundle.
"""

import html
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa

from torchrec_mt.data.sources.raw_tables import content_digest, frames, read_columns, write_tables
from torchrec_mt.errors import UserError

GENERATION = 1
"""Raised when the same files give other tables."""
_INT, _TEXT = pa.int64(), pa.string()
_FILES: dict[str, dict[str, pa.DataType]] = {
    "products": {"domain": _TEXT, "item_ID": _INT, "titles": _TEXT, "categories": _TEXT},
    "queries": {"domain": _TEXT, "bundle_ID": _INT, "intent": _TEXT},
    "bundle_item": {"domain": _TEXT, "bundle_ID": _INT, "item_ID": _INT},
    "session_bundle": {"domain": _TEXT, "session_ID": _INT, "bundle_ID": _INT},
    "user_bundle": {"domain": _TEXT, "user_ID": _INT, "bundle_ID": _INT, "timestamp": _INT},
}
_REMEDY = "dataset.source.root must hold the BundleRec tables (data/README.md says which)"


@dataclass(frozen=True, kw_only=True)
class BundleRec:
    """The BundleRec tables as Parquet files.

    Args:
        root: folder of the files. domains: which domains to take, of those the files hold.
    """

    kind: Literal["bundlerec"] = "bundlerec"
    root: str
    domains: tuple[str, ...] = ("electronic", "clothing")


def write_bundlerec(source: BundleRec, folder: Path) -> None:
    """Writes the raw tables; does nothing where they were made from the same files and settings.

    Raises:
        UserError: a missing file or column, a column of the wrong type, an unknown domain.
    """
    root = Path(source.root)
    if not root.is_dir():
        raise UserError(f"dataset.source.root = '{root}' is no folder: {_REMEDY}")
    digests = content_digest([root / f"{name}.parquet" for name in _FILES], remedy=_REMEDY)
    made_from = {"generation": GENERATION, "domains": asdict(source)["domains"], "files": digests}
    write_tables(folder, made_from, lambda: frames(_tables(source, root)))


def _tables(source: BundleRec, root: Path) -> dict[str, pd.DataFrame]:
    raw = {name: read_columns(root / f"{name}.parquet", columns, remedy=_REMEDY) for name, columns in _FILES.items()}
    known = sorted(raw["products"]["domain"].dropna().unique())
    unknown = [domain for domain in source.domains if domain not in known]
    if unknown or not source.domains:
        raise UserError(f"dataset.source.domains = {list(source.domains)}: '{root}' holds the domains {known}")
    raw = {name: table[table["domain"].isin(source.domains)] for name, table in raw.items()}
    queries, query_of_bundle = _queries(raw["queries"])
    bundle_items = _bundle_items(raw)
    intent_items = query_of_bundle.merge(bundle_items, on="bundle_id")
    tables = {
        "products": _products(raw["products"]),
        "queries": queries,
        "bundle_items": bundle_items,
        "intent_items": intent_items[["query_id", *bundle_items.columns]],
    }
    for domain in source.domains:
        for name in ("bundle_items", "intent_items"):
            tables[f"{name}_{domain}"] = tables[name][tables[name]["domain"] == domain]
    return tables


def _key(table: pd.DataFrame, column: str) -> pd.Series:
    return table["domain"] + ":" + table[column].astype("int64").astype(str)


def _products(raw: pd.DataFrame) -> pd.DataFrame:
    titled = raw[raw["titles"].notna()].reset_index(drop=True)
    return pd.DataFrame(
        {"product_id": _key(titled, "item_ID"), "domain": titled["domain"], "title": _unescape(titled["titles"])}
    ).join(_categories(titled["categories"]))


def _unescape(titles: pd.Series) -> pd.Series:
    """`&amp;` and its like as the characters they mean."""
    for entity in titles.str.extractall(r"(&#?\w+;)")[0].unique():
        titles = titles.str.replace(entity, html.unescape(entity), regex=False)
    return titles.str.split().str.join(" ")


def _categories(raw: pd.Series) -> pd.DataFrame:
    """`[[A,B],[A,C, D,E]]` -> leaf, levels (list) and category_text of the deepest path (of equals the last).

    A comma parts levels unless a blank follows it (`Clothing, Shoes & Jewelry` is one level).
    """
    paths = raw.fillna("").str.replace(r"^\[\[|\]\]$", "", regex=True).str.split("],[", regex=False).explode()
    levels = paths.str.split(r",(?! )", regex=True)
    deepest = pd.DataFrame({"levels": levels, "depth": levels.str.len()})
    deepest = deepest.sort_values("depth", kind="stable").groupby(level=0).tail(1).sort_index()["levels"]
    leaf = deepest.str[-1]
    return pd.DataFrame({"leaf": leaf.mask(leaf == ""), "levels": deepest, "category_text": deepest.str.join(" ")})


def _queries(raw: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Queries, and the query of each bundle. A query is named by the first bundle that has its text."""
    named = raw.assign(bundle_id=_key(raw, "bundle_ID"), text=raw["intent"].str.split().str.join(" "))
    named = named[named["text"].fillna("") != ""].sort_values(["domain", "bundle_ID"], kind="stable")
    same = named.groupby(["domain", named["text"].str.casefold()], sort=False)
    named = named.assign(query_id=same["bundle_id"].transform("first"))
    queries = named[named["query_id"] == named["bundle_id"]][["query_id", "domain", "text"]]
    return queries, named[["query_id", "bundle_id"]]


def _bundle_items(raw: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per item of a bundle, with its bundle's session, user and time."""
    keys = ["domain", "bundle_ID"]
    rows = raw["bundle_item"].merge(raw["session_bundle"], on=keys).merge(raw["user_bundle"], on=keys)
    if len(rows) != len(raw["bundle_item"]):
        raise UserError(
            f"bundle_item.parquet has {len(raw['bundle_item'])} rows, but joined with session_bundle.parquet and "
            f"user_bundle.parquet by domain and bundle_ID {len(rows)}: each bundle needs one session and one user; "
            f"{_REMEDY}"
        )
    columns = {"bundle_id": "bundle_ID", "session_id": "session_ID", "user_id": "user_ID"}
    table = pd.DataFrame({"product_id": _key(rows, "item_ID"), "domain": rows["domain"]})
    for name, column in columns.items():
        table[name] = _key(rows, column)
    return table.assign(time=pd.to_datetime(rows["timestamp"], unit="s").astype("datetime64[us]"))
