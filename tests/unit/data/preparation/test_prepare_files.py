"""Source files that are damaged, or do not agree among themselves: one message with key and file, never a traceback."""

import random
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.raw_shop import given, make_schema, with_pairs, write_raw
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.preparation import prepare
from torchrec_mt.errors import UserError
from torchrec_mt.schema import Schema


def prepared(tmp_path: Path, schema: Schema) -> PreparedDataset:
    return prepare(schema, name="t", raw=tmp_path / "raw", output=tmp_path / "out").dataset


def refusal(tmp_path: Path, schema: Schema) -> str:
    """The message; nothing may be left behind."""
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, schema)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def spoil(file: Path, start: int, stop: int, seed: int) -> None:
    """Random bytes in place of some; the magic bytes at both ends stay."""
    content = bytearray(file.read_bytes())
    content[start:stop] = random.Random(seed).randbytes(stop - start)
    file.write_bytes(content)


KEYS = {
    "products": "entities.product.path",
    "clicks": "tasks.search.pairs.path",
    "baskets": "tasks.together.pairs.path",
}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("seed", range(3))
def test_damaged_pages(tmp_path: Path, name: str, seed: int) -> None:
    file = write_raw(tmp_path / "raw") / f"{name}.parquet"
    spoil(file, 4, 200, seed)
    assert f"{KEYS[name]}: '{file}' cannot be read (" in refusal(tmp_path, make_schema())


@pytest.mark.parametrize("name", KEYS)
def test_a_damaged_footer(tmp_path: Path, name: str) -> None:
    file = write_raw(tmp_path / "raw") / f"{name}.parquet"
    size = file.stat().st_size
    footer = int.from_bytes(file.read_bytes()[-8:-4], "little")
    spoil(file, size - 8 - footer, size - 8, seed=0)
    assert f"{KEYS[name]}: '{file}' is not a whole Parquet file (" in refusal(tmp_path, make_schema())


def test_the_damaged_one_of_several_files_is_named(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    (raw / "clicks").mkdir()
    for number in range(3):
        (raw / f"clicks/{number}.parquet").write_bytes((raw / "clicks.parquet").read_bytes())
    spoil(raw / "clicks/1.parquet", 4, 200, seed=0)
    assert "clicks/1.parquet' cannot be read" in refusal(tmp_path, with_pairs(given(path="clicks")))


def test_csv_in_a_damaged_gzip(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    (raw / "clicks.csv.gz").write_bytes(b"\x1f\x8b\x08\x00no gzip at all")
    schema = with_pairs(given(path="clicks.csv.gz"))
    assert "tasks.search.pairs.path: '" in refusal(tmp_path, schema)


def write_parts(raw: Path, *times: list[Any]) -> None:
    """clicks/NUMBER.parquet, one a list of times."""
    (raw / "clicks").mkdir(parents=True)
    for number, values in enumerate(times):
        table = pa.table({"query": ["q1"] * len(values), "sku": ["a"] * len(values), "time": values})
        pq.write_table(table, raw / f"clicks/{number}.parquet")


@pytest.mark.parametrize(
    ("times", "kinds"),
    [
        (([1, 2], ["100", "199"]), ("int64", "string")),
        (([1, 2], [datetime(2025, 1, 1)]), ("int64", "timestamp[us]")),
        ((["1"], [date(2025, 1, 1)]), ("string", "date32[day]")),
        (([datetime(2025, 1, 1)], [datetime(2025, 1, 1, tzinfo=UTC)]), ("timestamp[us]", "timestamp[us, tz=UTC]")),
    ],
)
def test_times_of_several_types(tmp_path: Path, times: tuple[list[Any], ...], kinds: tuple[str, ...]) -> None:
    raw = write_raw(tmp_path / "raw")
    write_parts(raw, *times)
    said = refusal(tmp_path, with_pairs(given(path="clicks")))
    parts = [f"{kind} in '{raw}/clicks/{number}.parquet'" for number, kind in enumerate(kinds)]
    assert f"tasks.search.pairs.path: column 'time' is {parts[0]}, but {parts[1]}" in said


def test_types_that_mean_the_same_go_together(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    (raw / "clicks").mkdir()
    for number, (query, time) in enumerate([("q1", 1), ("q2", 2.0)]):
        table = pa.table({"query": [query], "sku": pa.array(["a"]).dictionary_encode(), "time": [time]})
        pq.write_table(table, raw / f"clicks/{number}.parquet")
    assert prepared(tmp_path, with_pairs(given(path="clicks"))).manifest.tasks["search"].pairs["train"] == 2


def test_times_of_csv_files_are_compared_too(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    (raw / "clicks").mkdir()
    for number, time in enumerate(["3", "2025-01-01"]):
        (raw / f"clicks/{number}.csv").write_text(f"query,sku,time\nq1,a,{time}\n")
    assert "column 'time' is int64 in" in refusal(tmp_path, with_pairs(given(path="clicks")))


@pytest.mark.parametrize("twin", ["sku", "SKU"])
def test_a_column_that_is_there_twice(tmp_path: Path, twin: str) -> None:
    raw = write_raw(tmp_path / "raw")
    table = pq.read_table(raw / "products.parquet")
    pq.write_table(table.append_column(twin, table["sku"]), raw / "products.parquet")
    said = refusal(tmp_path, make_schema())
    assert f"entities.product.path: '{raw}/products.parquet' has 2 columns called 'sku' ('sku', '{twin}';" in said
    (raw / "clicks.csv").write_text(f"query,sku,{twin},time\nq1,a,a,1\n")
    write_raw(raw)
    said = refusal(tmp_path, with_pairs(given(path="clicks.csv")))
    assert f"tasks.search.pairs.path: '{raw}/clicks.csv' has 2 columns called 'sku'" in said
