"""Icecat's raw tables from a handful of rows, and through preparation and judgement; the real files where they lie."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mt.config import load_config
from torchrec_mt.data.sources.icecat import Icecat, write_icecat
from torchrec_mt.errors import UserError
from torchrec_mt.prepare import prepare_dataset
from torchrec_mt.retrieval.baselines.rankers import baseline_rankers
from torchrec_mt.retrieval.evaluator import evaluate_tasks

Rows = dict[str, list[dict[str, object]]]

WORDS = ["mouse", "keyboard", "toner", "cable", "radio", "lamp", "camera", "tripod"]


def rows() -> Rows:
    """Six products per word; the sixth is described as the fifth but for case and blanks, "lamp" is not described."""
    products: list[dict[str, object]] = [
        {
            "id": str(10 * kind + number),
            "title": f"Acme X{number} {word} black",
            "short_description": None if word == "lamp" else f"A {word},  no {min(number, 4)}" + " " * number,
            "supplier": "Acme",
            "price": 100,
        }
        for kind, word in enumerate(WORDS)
        for number in range(6)
    ]
    products[5]["short_description"] = "a MOUSE, no 4"
    ratings = [("mouse", "0", 3), ("mouse", "1", 1), ("mouse", "10", 0), ("lamp", "50", 2), ("lamp", "20", 0)]
    return {
        "products": products,
        "judgements": [{"query": query, "docid": product, "rating": rating} for query, product, rating in ratings],
    }


def write(root: Path, data: Rows) -> Path:
    root.mkdir(exist_ok=True)
    for name, table in data.items():
        pq.write_table(pa.Table.from_pylist(table), root / f"{name}.parquet")
    return root


def make(tmp_path: Path, data: Rows | None = None) -> dict[str, pd.DataFrame]:
    write_icecat(Icecat(root=str(write(tmp_path / "root", data or rows()))), tmp_path / "raw")
    return {file.stem: pd.read_parquet(file) for file in (tmp_path / "raw").glob("*.parquet")}


def test_a_description_finds_its_product_and_is_no_text_of_it(tmp_path: Path) -> None:
    tables = make(tmp_path)
    assert list(tables["products"].columns) == ["product_id", "title", "supplier"]
    assert len(tables["products"]) == 48
    pairs = tables["described_products"].merge(tables["queries"], on="query_id").set_index("product_id")["text"]
    assert pairs["10"] == "A keyboard, no 0"
    assert not set(pairs.index) & {str(number) for number in range(50, 56)}, "nobody described the lamps"


def test_equal_descriptions_are_one_anchor(tmp_path: Path) -> None:
    pairs = make(tmp_path)["described_products"].set_index("product_id")["query_id"]
    assert pairs["4"] == pairs["5"] == "described:4"
    assert pairs.index.is_unique


def test_judgements_keep_their_zeros_and_name_their_query_apart(tmp_path: Path) -> None:
    tables = make(tmp_path)
    judged = tables["judgements"]
    assert list(judged.columns) == ["judged_id", "product_id", "rating"], "no query_id: that is what the split reads"
    assert list(judged["rating"]) == [3, 1, 0, 2, 0]
    assert set(judged["judged_id"]) == {"judged:mouse", "judged:lamp"} < set(tables["queries"]["query_id"])
    assert tables["queries"]["query_id"].is_unique


def test_unchanged_source_writes_nothing_and_a_changed_one_everything(tmp_path: Path) -> None:
    make(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "raw").iterdir()}
    make(tmp_path)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "raw").iterdir()}
    changed = rows()
    changed["products"][0]["title"] = "Acme trackball"
    assert make(tmp_path, changed)["products"]["title"].iloc[0] == "Acme trackball"


def test_user_errors_name_file_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere' is no folder: .*data/README.md"):
        write_icecat(Icecat(root=str(tmp_path / "nowhere")), tmp_path / "raw")
    data = rows()
    data["judgements"] = [{"query": "mouse", "docid": "0", "rating": "good"}]
    with pytest.raises(UserError, match=r"column 'rating' of '.*judgements.parquet' is string, not int64"):
        make(tmp_path, data)
    (tmp_path / "root" / "judgements.parquet").unlink()
    with pytest.raises(UserError, match=r"no file '.*judgements.parquet'.*data/README.md"):
        write_icecat(Icecat(root=str(tmp_path / "root")), tmp_path / "raw")


def test_the_launch_file_judges_the_twin_as_a_pool(tmp_path: Path) -> None:
    root = write(tmp_path / "root", rows())
    where = [f"dataset.path={tmp_path / 'prepared'}", f"dataset.source.root={root}"]
    config = load_config(["launch/icecat.toml"], where)
    dataset = prepare_dataset(config).dataset
    described, search = dataset.manifest.tasks["described"], dataset.manifest.tasks["search"]
    assert sum(described.pairs.values()) == 42
    assert min(described.pairs.values()) > 0
    assert search.pairs == {"train": 0, "valid": 0, "test": 5}
    result = evaluate_tasks(
        dataset, {"search": lambda: baseline_rankers(dataset, "search", config.evaluate)}, config.evaluate
    )
    pool = result.tasks["search"].judged
    assert pool is not None
    assert (pool.num_anchors, pool.num_judged) == (2, 5)
    # Both mice have the same words, so the one of the lower row stands first, whose grade is 1 and not 3.
    swapped = (1 + 3 / np.log2(3)) / (3 + 1 / np.log2(3))
    assert pool.systems["bm25"]["condensed_ndcg@10"] == pytest.approx((swapped + 1) / 2)
    assert pool.systems["oracle"]["bpref"] == 1


REAL = Path("../shared/data/icecat")


@pytest.mark.skipif(not REAL.is_dir(), reason="the Icecat files do not lie beside the project (see data/README.md)")
def test_the_real_files(tmp_path: Path) -> None:
    write_icecat(Icecat(root=str(REAL)), tmp_path)
    tables = {file.stem: pd.read_parquet(file) for file in tmp_path.glob("*.parquet")}
    assert {name: len(table) for name, table in tables.items()} == {
        "products": 19_406,
        "queries": 17_471,
        "judgements": 3_668,
        "described_products": 18_685,
    }
    assert tables["judgements"]["product_id"].isin(tables["products"]["product_id"]).all()
    assert tables["judgements"]["rating"].value_counts().to_dict() == {0: 1_853, 3: 1_472, 1: 238, 2: 105}
