"""BundleRec's raw tables from a handful of rows; every trap of the data once."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mt.data.sources.bundlerec import BundleRec, write_bundlerec
from torchrec_mt.errors import UserError

Rows = dict[str, list[dict[str, object]]]


def both(**columns: list[object]) -> list[dict[str, object]]:
    """Rows from columns."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def rows() -> Rows:
    e, c = "electronic", "clothing"
    return {
        "products": both(
            domain=[e, e, e, c, c],
            item_ID=[1, 2, 3, 1, 9],
            titles=["Cam &amp; Case 17&quot;", "  Lens   Cap ", "Strap", "Red dress", None],
            categories=[
                "[[Electronics,Camera & Photo,Cases]]",
                "[[Electronics],[Electronics,Camera & Photo,Lens Caps]]",
                "[[Electronics,A],[Electronics,B]]",
                "[[Clothing, Shoes & Jewelry,Women,Dresses],[Sale]]",
                None,
            ],
        ),
        "queries": both(
            domain=[e, e, e, c, c],
            bundle_ID=[0, 1, 2, 0, 1],
            intent=["camera things", "Camera  Things ", "photo", "camera things", None],
        ),
        "bundle_item": both(domain=[e, e, e, e, c, c], bundle_ID=[0, 0, 1, 2, 0, 1], item_ID=[1, 2, 3, 1, 1, 1]),
        "session_bundle": both(domain=[e, e, e, c, c], session_ID=[7, 7, 8, 7, 7], bundle_ID=[0, 1, 2, 0, 1]),
        "user_bundle": both(
            domain=[e, e, e, c, c], user_ID=[5, 5, 6, 5, 5], bundle_ID=[0, 1, 2, 0, 1], timestamp=[86_400] * 5
        ),
    }


def write(root: Path, data: Rows) -> Path:
    root.mkdir(exist_ok=True)
    for name, table in data.items():
        pq.write_table(pa.Table.from_pylist(table), root / f"{name}.parquet")
    return root


def make(tmp_path: Path, data: Rows | None = None, **settings: object) -> dict[str, pd.DataFrame]:
    source = BundleRec(root=str(write(tmp_path / "root", data or rows())), **settings)  # type: ignore[arg-type]
    write_bundlerec(source, tmp_path / "raw")
    return {file.stem: pd.read_parquet(file) for file in (tmp_path / "raw").glob("*.parquet")}


def test_ids_carry_their_domain_and_untitled_products_are_left_out(tmp_path: Path) -> None:
    products = make(tmp_path)["products"]
    assert list(products["product_id"]) == ["electronic:1", "electronic:2", "electronic:3", "clothing:1"]


def test_titles_are_readable_text(tmp_path: Path) -> None:
    assert list(make(tmp_path)["products"]["title"]) == ['Cam & Case 17"', "Lens Cap", "Strap", "Red dress"]


def test_categories_are_the_deepest_path_of_equals_the_last(tmp_path: Path) -> None:
    products = make(tmp_path)["products"]
    assert list(products["leaf"]) == ["Cases", "Lens Caps", "B", "Dresses"]
    assert list(products["levels"].iloc[3]) == ["Clothing, Shoes & Jewelry", "Women", "Dresses"]
    assert products["category_text"].iloc[2] == "Electronics B"


def test_equal_intents_of_a_domain_are_one_query_and_a_null_is_none(tmp_path: Path) -> None:
    tables = make(tmp_path)
    assert {(row.query_id, row.text) for row in tables["queries"].itertuples()} == {
        ("electronic:0", "camera things"),
        ("electronic:2", "photo"),
        ("clothing:0", "camera things"),
    }
    pairs = {(row.query_id, row.product_id, row.bundle_id) for row in tables["intent_items"].itertuples()}
    assert pairs == {
        ("electronic:0", "electronic:1", "electronic:0"),
        ("electronic:0", "electronic:2", "electronic:0"),
        ("electronic:0", "electronic:3", "electronic:1"),
        ("electronic:2", "electronic:1", "electronic:2"),
        ("clothing:0", "clothing:1", "clothing:0"),
    }
    assert len(tables["bundle_items"]) == 6, "a bundle without an intent is still a bundle"


def test_every_pair_names_session_user_and_time(tmp_path: Path) -> None:
    first = make(tmp_path)["bundle_items"].set_index("bundle_id").loc["electronic:2"]
    assert (first["session_id"], first["user_id"]) == ("electronic:8", "electronic:6")
    assert first["time"] == pd.Timestamp("1970-01-02")


def test_domains_have_files_of_their_own_and_may_be_chosen(tmp_path: Path) -> None:
    tables = make(tmp_path)
    for name in ("bundle_items", "intent_items"):
        parts = [tables[f"{name}_electronic"], tables[f"{name}_clothing"]]
        assert sum(map(len, parts)) == len(tables[name])
        assert [set(part["domain"]) for part in parts] == [{"electronic"}, {"clothing"}]
    (tmp_path / "second").mkdir()
    alone = make(tmp_path / "second", domains=("clothing",))
    assert list(alone["products"]["product_id"]) == ["clothing:1"]
    assert "bundle_items_electronic" not in alone


def test_unchanged_source_writes_nothing_and_a_changed_one_everything(tmp_path: Path) -> None:
    make(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "raw").iterdir()}
    make(tmp_path)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "raw").iterdir()}
    changed = rows()
    changed["products"][0]["titles"] = "Camera"
    assert make(tmp_path, changed)["products"]["title"].iloc[0] == "Camera"


def test_half_written_folder_is_written_again(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "raw" / "queries.parquet").unlink()
    assert "queries" in make(tmp_path)
    (tmp_path / "raw" / "source.json").write_text('{"whole": false}')
    (tmp_path / "raw" / "products.parquet").write_bytes(b"torn")
    assert len(make(tmp_path)["products"]) == 4


def test_user_errors_name_file_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere' is no folder: .*data/README.md"):
        write_bundlerec(BundleRec(root=str(tmp_path / "nowhere")), tmp_path / "raw")
    with pytest.raises(UserError, match=r"domains = \['food'\].*holds the domains \['clothing', 'electronic'\]"):
        make(tmp_path, domains=("food",))
    root = tmp_path / "root"
    (root / "queries.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"queries.parquet' is not a readable Parquet file"):
        write_bundlerec(BundleRec(root=str(root)), tmp_path / "raw")
    (root / "queries.parquet").unlink()
    with pytest.raises(UserError, match=r"no file '.*queries.parquet'"):
        write_bundlerec(BundleRec(root=str(root)), tmp_path / "raw")


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    data = rows()
    data["queries"] = [{"domain": "clothing", "bundle_ID": 0}]
    with pytest.raises(UserError, match=r"queries.parquet' has no column 'intent' \(it has: 'domain', 'bundle_ID'\)"):
        make(tmp_path, data)
    data = rows()
    data["bundle_item"] = [{"domain": "clothing", "bundle_ID": 0, "item_ID": "seven"}]
    with pytest.raises(UserError, match=r"column 'item_ID' of '.*bundle_item.parquet' is string, not int64"):
        make(tmp_path, data)


def test_a_bundle_without_a_session_is_an_error(tmp_path: Path) -> None:
    data = rows()
    data["session_bundle"] = data["session_bundle"][1:]
    with pytest.raises(UserError, match=r"each bundle needs one session and one user"):
        make(tmp_path, data)


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds mine.parquet but no source.json"):
        make(tmp_path)
    assert (raw / "mine.parquet").read_bytes() == b"mine"
    (raw / "source.json").write_text("{")
    with pytest.raises(UserError, match=r"source.json' is not readable"):
        make(tmp_path)


REAL = Path("../shared/data/bundlerec")


@pytest.mark.skipif(not REAL.is_dir(), reason="the BundleRec files do not lie beside the project (see data/README.md)")
def test_the_real_files(tmp_path: Path) -> None:
    write_bundlerec(BundleRec(root=str(REAL)), tmp_path)
    products, items = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("products", "bundle_items"))
    assert (len(products), len(items)) == (7_986, 12_491)
    assert products["product_id"].is_unique
    assert items["product_id"].isin(products["product_id"]).all()
    assert not products["leaf"].isna().any()
    assert not products["title"].str.contains("&amp;|&quot;", regex=True).any()
