"""Bad input: one message that names the place, the value and the remedy; earlier results untouched."""

from pathlib import Path
from typing import Any

import pytest

from tests.raw_shop import (
    BASKETS,
    CLICKS,
    PRODUCTS,
    QUERIES,
    given,
    make_schema,
    run,
    with_features,
    with_pairs,
    write_raw,
)
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.preparation import prepare
from torchrec_mt.errors import UserError
from torchrec_mt.schema import (
    NumberFeature,
    Schema,
    TextFeature,
    VectorFeature,
)

NAN, INF = float("nan"), float("inf")


def changed(rows: dict[str, list[Any]], column: str, row: int, value: Any) -> dict[str, list[Any]]:
    values = list(rows[column])
    values[row] = value
    return {**rows, column: values}


WEIGHED = {**CLICKS, "w": [1.0] * 8}
CASES: dict[str, tuple[Schema, dict[str, Any], tuple[str, ...]]] = {
    "missing column": (make_schema(), {"products": {"sku": ["a"]}}, ("products.parquet", "no column 'title'")),
    "null id": (make_schema(), {"products": changed(PRODUCTS, "sku", 1, None)}, ("products", "sku")),
    "duplicate id": (make_schema(), {"products": changed(PRODUCTS, "sku", 1, "a")}, ("products", "'a'")),
    "empty table": (make_schema(), {"queries": {"query": [], "words": []}}, ("queries",)),
    "text on a number": (
        with_features(title=TextFeature(kind="text", columns=("price",), table="kind")),
        {},
        ("price", "double", "string"),
    ),
    "number on a string": (with_features(n=NumberFeature(kind="number", column="kind")), {}, ("kind", "string")),
    "infinite number": (
        with_features(n=NumberFeature(kind="number", column="price")),
        {"products": changed(PRODUCTS, "price", 0, INF)},
        ("price", "'a'"),
    ),
    "not a number": (
        with_features(n=NumberFeature(kind="number", column="price")),
        {"products": changed(PRODUCTS, "price", 1, NAN)},
        ("price", "'b'"),
    ),
    "a number beyond float32": (
        with_features(n=NumberFeature(kind="number", column="price")),
        {"products": changed(PRODUCTS, "price", 1, -1e200)},
        ("entities.product.features.n", "'price'", "'b'", "-1e+200", "float32"),
    ),
    "a vector beyond float32": (
        with_features(v=VectorFeature(kind="vector", column="v", dim=2)),
        {"products": {**PRODUCTS, "v": [[1.0, 2.0], [1.0, 1e200], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]}},
        ("'v'", "'b'", "1e+200", "float32"),
    ),
    "vector of another length": (
        with_features(v=VectorFeature(kind="vector", column="v", dim=2)),
        {"products": {**PRODUCTS, "v": [[1.0, 2.0], [1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]}},
        ("v", "'b'"),
    ),
    "negative weight": (with_pairs(given(weight="w")), {"clicks": changed(WEIGHED, "w", 2, -1.0)}, ("'w'", "-1.0")),
    "NaN weight": (with_pairs(given(weight="w")), {"clicks": changed(WEIGHED, "w", 2, NAN)}, ("'w'", "finite")),
    "NaN grade": (with_pairs(given(grade="w")), {"clicks": changed(WEIGHED, "w", 2, NAN)}, ("'w'", "finite")),
    "weights that are all 0": (
        with_pairs(given(weight="w")),
        {"clicks": {**CLICKS, "w": [1e-13] * 6 + [1.0] * 2}},
        ("tasks.search.pairs.weight", "4 training pairs", "'w'"),
    ),
    "nothing but grade 0": (
        with_pairs(given(grade="w", min_grade=0.0)),
        {"clicks": {**CLICKS, "w": [0.0] * 8}},
        ("tasks.search.pairs", "no training pairs", "'grade 0 in training': 6"),
    ),
    "negatives that are no lists": (
        with_pairs(given(negatives="w")),
        {"clicks": WEIGHED},
        ("tasks.search.pairs.path", "clicks.parquet", "'w'", "double", "a list of strings or integers"),
    ),
    "negatives that are lists of numbers": (
        with_pairs(given(negatives="shown")),
        {"clicks": {**CLICKS, "shown": [[0.5]] * 8}},
        ("tasks.search.pairs.path", "'shown'", "double", "a list of strings or integers"),
    ),
    "labels that are numbers": (
        with_pairs(given(label="w", roles={"1.0": 1.0})),
        {"clicks": WEIGHED},
        ("tasks.search.pairs.path", "'w'", "double", "a string or an integer"),
    ),
    "no column of labels": (with_pairs(given(label="esci", roles={"E": 1.0})), {}, ("no column 'esci'", "'query'")),
    "labels that have no role": (
        with_pairs(given(label="sku", roles={"A": 1.0})),
        {},
        ("tasks.search.pairs", "no training pairs", "'label without a role': 8", "roles"),
    ),
    "too many unknown": (make_schema(), {"clicks": changed(CLICKS, "sku", 0, "ghost")}, ("search", "ghost")),
    "no training pairs": (
        make_schema(),
        {"clicks": {**CLICKS, "time": [99] * 8}},
        ("search", "training"),
    ),
    "strings beside numbers as time": (
        make_schema(),
        {"clicks": {**CLICKS, "time": [str(t) for t in CLICKS["time"]]}},
        ("time", "search"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_tables(tmp_path: Path, case: str) -> None:
    schema, tables, said = CASES[case]
    with pytest.raises(UserError) as caught:
        run(tmp_path, schema, **tables)
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert "\n" not in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"], "something was left behind"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    whole = (raw / "clicks.parquet").read_bytes()
    (raw / "clicks.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"clicks\.parquet' is not a whole Parquet file"):
        prepare(make_schema(), name="t", raw=raw, output=tmp_path / "out")
    (raw / "clicks.parquet").unlink()
    with pytest.raises(UserError, match=r"tasks\.search\.pairs\.path.*clicks\.parquet"):
        prepare(make_schema(), name="t", raw=raw, output=tmp_path / "out")
    (raw / "clicks.csv").write_text('query,sku,time\nq1,a,1\nq1,"b,2\n')
    with pytest.raises(UserError, match=r"clicks\.csv"):
        prepare(with_pairs(given(path="clicks.csv")), name="t", raw=raw, output=tmp_path / "out")


def test_a_second_time_does_nothing_and_a_change_prepares_again(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    first = prepare(make_schema(), name="t", raw=raw, output=tmp_path / "out")
    second = prepare(make_schema(), name="t", raw=raw, output=tmp_path / "out")
    assert (first.fresh, second.fresh) == (True, False)
    write_raw(raw, products={**PRODUCTS, "title": ["new", *PRODUCTS["title"][1:]]})
    third = prepare(make_schema(), name="t", raw=raw, output=tmp_path / "out")
    assert third.fresh
    assert third.dataset.manifest.digest != first.dataset.manifest.digest


def test_a_failed_run_leaves_the_earlier_result(tmp_path: Path) -> None:
    before = run(tmp_path, make_schema()).manifest.digest
    with pytest.raises(UserError):
        run(tmp_path, make_schema(), products=changed(PRODUCTS, "sku", 1, "a"))
    assert PreparedDataset.open(tmp_path / "out").manifest.digest == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_a_folder_that_is_not_ours_and_a_half_written_one(tmp_path: Path) -> None:
    raw, out = write_raw(tmp_path / "raw"), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="out"):
        prepare(make_schema(), name="t", raw=raw, output=out)
    assert (out / "thesis.tex").read_text() == "years of work"
    # What a killed run leaves: no manifest, so nobody takes it for a dataset.
    half = tmp_path / ".other.partial-1"
    (half / "entities").mkdir(parents=True)
    with pytest.raises(UserError, match="no prepared dataset"):
        PreparedDataset.open(half)


def test_csv_holds_no_lists(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    (raw / "clicks.csv").write_text("query,sku,time,shown\nq1,a,1,b\n")
    with pytest.raises(UserError, match=r"tasks\.search\.pairs\.path.*'shown'.*list.*CSV cannot hold; use Parquet"):
        prepare(with_pairs(given(path="clicks.csv", negatives="shown")), name="t", raw=raw, output=tmp_path / "out")


def test_csv_globs_and_folders(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    (raw / "clicks").mkdir()
    lines = [",".join(map(str, row)) for row in zip(*CLICKS.values(), strict=True)]
    (raw / "clicks/1.csv").write_text("\n".join(["query,sku,time", *lines[:3]]) + "\n")
    (raw / "clicks/2.csv").write_text("\n".join(["query,sku,time", *lines[3:]]) + "\n")
    expected = prepare(make_schema(), name="t", raw=raw, output=tmp_path / "a").dataset.pairs("search", "train")
    for path in ("clicks", "clicks/*.csv"):
        made = prepare(with_pairs(given(path=path)), name="t", raw=raw, output=tmp_path / path.replace("/*", "_"))
        assert made.dataset.pairs("search", "train")["count"].tolist() == expected["count"].tolist()


def test_ids_that_are_numbers_are_ids_all_the_same(tmp_path: Path) -> None:
    numbers = {name: str(n) for n, name in enumerate("abcde")}
    products = {**PRODUCTS, "sku": [int(numbers[sku]) for sku in PRODUCTS["sku"]]}
    clicks = {**CLICKS, "sku": [numbers[sku] for sku in CLICKS["sku"]]}
    baskets = {**BASKETS, "sku": [int(numbers[sku]) for sku in BASKETS["sku"]]}
    dataset = run(tmp_path, make_schema(), products=products, clicks=clicks, baskets=baskets, queries=QUERIES)
    assert dataset.manifest.tasks["search"].pairs["train"] == 4
