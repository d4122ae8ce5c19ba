"""Vocabularies: which value has which row of an embedding table. Row 0 is kept for all others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mt.data.preparation.words import NGRAM, WORD
from torchrec_mt.schema import OOV_ROW, Table


@dataclass(frozen=True)
class Vocabulary:
    """One table's values: `table` has value, row, count (and kind for text); `documents`: entities counted, for IDF."""

    table: pa.Table
    documents: int = 0

    @property
    def rows(self) -> int:
        """Rows of the embedding table, the out-of-vocabulary row included."""
        return len(self.table) + 1

    def find(self, values: pa.Array, kinds: pa.Array | None = None) -> np.ndarray:
        """Row of each value (of its kind, where values have kinds), or 0: int32."""
        if kinds is None:
            return _find(self.table, values)
        rows = np.full(len(values), OOV_ROW, np.int32)
        for kind in (WORD, NGRAM):
            here = pc.equal(kinds, kind)
            of_kind = self.table.filter(pc.equal(self.table["kind"], kind))
            rows[here.to_numpy(zero_copy_only=False)] = _find(of_kind, values.filter(here))
        return rows

    def idf(self) -> np.ndarray:
        """log(1 + documents / count) by row, scaled to mean 1 over the vocabulary; 0 for row 0: float32."""
        idf = np.log1p(self.documents / self.table["count"].to_numpy())
        return np.concatenate([[0.0], idf / idf.mean() if len(idf) else idf]).astype(np.float32)


def _find(table: pa.Table, values: pa.Array) -> np.ndarray:
    at = pc.index_in(values, value_set=table["value"].combine_chunks())
    rows = table["row"].to_numpy()
    missing = at.is_null().to_numpy(zero_copy_only=False)
    if not len(rows):
        return np.full(len(values), OOV_ROW, np.int32)
    return np.where(missing, OOV_ROW, rows[at.fill_null(0).to_numpy(zero_copy_only=False)]).astype(np.int32)


def build_vocabulary(counts: Sequence[pa.Table], declared: Table, documents: int = 0) -> Vocabulary:
    """Sums counts over the features that share a table, and gives rows by count descending, kind, value ascending.

    Args:
        counts: per feature value (string), count (int64), and kind (string) if it is text.
        declared: `max_rows` and `min_count` cut the tail.
        documents: entities over which text was counted.
    """
    every = pa.concat_tables(counts)
    keys = [name for name in ("kind", "value") if name in every.column_names]
    summed = every.group_by(keys).aggregate([("count", "sum")]).rename_columns([*keys, "count"])
    summed = summed.filter(pc.greater_equal(summed["count"], declared.min_count))
    order = summed.sort_by([("count", "descending"), *((key, "ascending") for key in keys)]).slice(
        0, declared.max_rows - 1
    )
    columns = {
        "value": order["value"],
        "row": pa.array(np.arange(1, len(order) + 1), pa.int32()),
        "count": order["count"],
    }
    if "kind" in keys:
        columns["kind"] = order["kind"]
    return Vocabulary(pa.table(columns), documents)
