"""Sparse features as bags of table rows.

First every feature is taken apart in the engine into a long table (row, pos, item) and its values are counted; when all
features of a table are counted there is a vocabulary, and then the bags of any range of entities can be read.
"""

import re
import uuid
from dataclasses import dataclass
from pathlib import Path

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.data.preparation.ragged import Ragged
from torchrec_mt.data.preparation.vocabulary import Vocabulary
from torchrec_mt.data.preparation.words import Tokens, tokenise
from torchrec_mt.schema import OOV_ROW, CategoriesFeature, CategoryFeature, IdFeature, SparseFeature, TextFeature

_BLANKS = "[ \t\n\r\v\f]+"
_CHUNKS = 1 << 18


@dataclass(frozen=True)
class LongBags:
    """One sparse feature taken apart.

    Args:
        table: cached, with columns row (of the entity), pos (in the bag) and item: a value, or for text a chunk number.
        counts: value, count (and kind): how often each value was seen.
        tokens: for text, the tokens of each chunk.
    """

    table: ir.Table
    counts: pa.Table
    tokens: Tokens | None = None


def take_apart(engine: Engine, frame: ir.Table, name: str, feature: SparseFeature) -> LongBags:
    """Takes one feature of an entity apart.

    Args:
        frame: the entity with final rows: row, id, train_count and `f:FEATURE` columns.
    """
    column = frame[f"f:{name}"] if not isinstance(feature, IdFeature) else frame.id
    match feature:
        case TextFeature():
            return _text(engine, frame.select("row", item=column), feature)
        case IdFeature():
            # An unseen entity's id is looked up too, in the out-of-vocabulary row.
            every = engine.cache(frame.select("row", item=column, pos=ibis.literal(0)))
            seen = frame.filter(frame.train_count > 0).select(value="id", count="train_count")
            return LongBags(every, engine.arrow(seen))
        case CategoryFeature():
            long = frame.select("row", item=column, pos=ibis.literal(0))
        case CategoriesFeature():
            values = column
            if feature.separator is not None:
                values = column.re_split(re.escape(feature.separator))
            long = frame.select("row", item=values).unnest("item", offset="pos").mutate(item=ibis._.item.cast("string"))
            if feature.separator is not None:
                long = long.mutate(item=ibis._.item.strip())
    long = engine.cache(long.filter(long.item.notnull() & (long.item != "")))
    distinct = long.select("row", "item").distinct()
    return LongBags(long, engine.arrow(distinct.group_by(value="item").agg(count=distinct.count())))


def _text(engine: Engine, frame: ir.Table, feature: TextFeature) -> LongBags:
    """Distinct chunks come to this process, their tokens go back to be counted by entity."""
    chunks = frame.select("row", item=frame.item.re_split(_BLANKS)).unnest("item", offset="pos")
    chunks = engine.cache(chunks.filter(chunks.item != ""))
    distinct = engine.arrow(chunks.select("item").distinct().order_by("item"))["item"]
    tokens = tokenise(distinct, feature)
    numbers = pa.table({"item": distinct, "chunk": pa.array(np.arange(len(distinct)), pa.int64())})
    long = engine.cache(chunks.inner_join(ibis.memtable(numbers), "item").select("row", "pos", item="chunk"))
    engine.drop(chunks)
    of_chunk = engine.read([_token_file(tokens.bags, engine.scratch)])
    seen = long.select("row", "item").inner_join(of_chunk, "item").select("row", "token").distinct()
    counted = engine.arrow(seen.group_by("token").agg(count=seen.count()))
    at = counted["token"].combine_chunks()
    counts = pa.table({"kind": tokens.kind.take(at), "value": tokens.value.take(at), "count": counted["count"]})
    return LongBags(long, counts, tokens)


def _token_file(bags: Ragged, scratch: Path) -> Path:
    """Columns item (chunk) and token as a file that the engine reads in blocks: millions of words have many."""
    path = scratch / f"tokens-{uuid.uuid4().hex[:12]}.parquet"
    schema = pa.schema([("item", pa.int64()), ("token", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(bags.lengths), _CHUNKS):
            lengths = bags.lengths[start : start + _CHUNKS]
            here = slice(bags.offsets[start], bags.offsets[start + len(lengths)])
            columns = [np.repeat(np.arange(start, start + len(lengths)), lengths), bags.values[here]]
            writer.write_table(pa.table(columns, names=schema.names).cast(schema))
    return path


class BagReader:
    """Bags of table rows of one feature, any range of entities at a time."""

    def __init__(self, engine: Engine, long: LongBags, feature: SparseFeature, vocabulary: Vocabulary) -> None:
        self._engine, self.feature = engine, feature
        self.weight_of_row = vocabulary.idf() if isinstance(feature, TextFeature) and feature.weights == "idf" else None
        self.truncated = 0
        self.lookups = 0
        if long.tokens is not None:
            rows = vocabulary.find(long.tokens.value, long.tokens.kind)[long.tokens.bags.values]
            self._of_chunk: Ragged | None = Ragged(long.tokens.bags.offsets, rows).kept(rows != OOV_ROW)
            self._long = long.table
        else:
            self._of_chunk = None
            known = ibis.memtable(vocabulary.table.select(["value", "row"]).rename_columns(["item", "found"]))
            joined = long.table.left_join(known, "item")
            self._long = engine.cache(joined.select("row", "pos", item=joined.found.fill_null(0)))
            engine.drop(long.table)

    def read(self, start: int, stop: int) -> Ragged:
        """Bags of entities start..stop - 1 (int32 table rows), cut to the longest allowed; counts what it cut."""
        here = (
            self._long.filter((self._long.row >= start) & (self._long.row < stop))
            .order_by("row", "pos")
            .select("row", "item")
        )
        result = self._engine.arrow(here)
        rows, items = (result[name].to_numpy().astype(np.int64) for name in ("row", "item"))
        if self._of_chunk is None:
            bags = Ragged.of_lengths(np.bincount(rows - start, minlength=stop - start), items.astype(np.int32))
        else:
            bags = self._of_chunk.take(items).concatenated(rows - start, stop - start)
        longest = self._longest()
        if longest is not None:
            self.truncated += int((bags.lengths > longest).sum())
            bags = bags.head(longest)
        self.lookups += len(bags.values)
        return bags

    def _longest(self) -> int | None:
        match self.feature:
            case TextFeature():
                return self.feature.max_tokens
            case CategoriesFeature():
                return self.feature.max_values
        return None
