"""Icecat as raw tables: a catalogue of electronics, queries written by practitioners, and how people judged products.

    products.parquet             product_id, title, supplier
    queries.parquet              query_id, text: judged queries ("judged:...") and descriptions ("described:...")
    judgements.parquet           judged_id, product_id, rating (0 irrelevant ... 3)
    described_products.parquet   query_id, product_id: what a model can be trained on where nobody logged anything
    source.json                  what they were made from, and whether they are whole

Decisions: there is no log, so training makes do with the catalogue: a supplier's short description of a product is the
anchor and shall find the product by title and supplier. What is described is therefore no text of the product. Equal
descriptions (but for case and blanks) are one anchor. Judgements name their query in a column of its own, so a split by
`query_id` divides the descriptions and leaves the judgements to the test.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa

from torchrec_mt.data.sources.raw_tables import content_digest, frames, read_columns, write_tables
from torchrec_mt.errors import UserError

GENERATION = 1
"""Raised when the same files give other tables."""
_TEXT = pa.string()
_FILES: dict[str, dict[str, pa.DataType]] = {
    "products": dict.fromkeys(["id", "title", "short_description", "supplier"], _TEXT),
    "judgements": {"query": _TEXT, "docid": _TEXT, "rating": pa.int64()},
}
_REMEDY = "dataset.source.root must hold the Icecat tables (data/README.md says which)"


@dataclass(frozen=True, kw_only=True)
class Icecat:
    """The Icecat products and the ratings of querqy/chorus, as Parquet files.

    Args:
        root: folder of the files.
    """

    kind: Literal["icecat"] = "icecat"
    root: str


def write_icecat(source: Icecat, folder: Path) -> None:
    """Writes the raw tables; does nothing where they were made from the same files.

    Raises:
        UserError: a missing file or column, or a column of the wrong type.
    """
    root = Path(source.root)
    if not root.is_dir():
        raise UserError(f"dataset.source.root = '{root}' is no folder: {_REMEDY}")
    digests = content_digest([root / f"{name}.parquet" for name in _FILES], remedy=_REMEDY)
    write_tables(folder, {"generation": GENERATION, "files": digests}, lambda: frames(_tables(root)))


def _tables(root: Path) -> dict[str, pd.DataFrame]:
    raw = {name: read_columns(root / f"{name}.parquet", columns, remedy=_REMEDY) for name, columns in _FILES.items()}
    products = raw["products"].rename(columns={"id": "product_id"})
    described = _described(products)
    ratings = raw["judgements"].rename(columns={"docid": "product_id"})
    ratings["judged_id"] = "judged:" + ratings["query"]
    queries = [ratings[["judged_id", "query"]].set_axis(["query_id", "text"], axis=1), described[["query_id", "text"]]]
    return {
        "products": products[["product_id", "title", "supplier"]],
        "queries": pd.concat(queries).drop_duplicates("query_id", ignore_index=True),
        "judgements": ratings[["judged_id", "product_id", "rating"]],
        "described_products": described[["query_id", "product_id"]],
    }


def _described(products: pd.DataFrame) -> pd.DataFrame:
    """query_id, product_id, text: a description is named by the first product that has it."""
    text = products["short_description"].fillna("").str.split().str.join(" ")
    described = products[["product_id"]].assign(text=text)[text != ""]
    first = described.groupby(described["text"].str.casefold(), sort=False)["product_id"].transform("first")
    return described.assign(query_id="described:" + first)
