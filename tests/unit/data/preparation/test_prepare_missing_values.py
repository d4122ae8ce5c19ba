"""Features that an entity does not have: no vector is zeros and counted, lists without any entry are no lookups."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.raw_shop import PRODUCTS, ids, run, with_features
from torchrec_mt.errors import UserError
from torchrec_mt.schema import CategoriesFeature, VectorFeature

VECTOR = VectorFeature(kind="vector", column="v", dim=2)


def test_no_vector_is_zeros_and_counted(tmp_path: Path) -> None:
    products = {**PRODUCTS, "v": [[1.0, 2.0], None, [3.0, 4.0], None, [5.0, 6.0]]}
    dataset = run(tmp_path, with_features(v=VECTOR), products=products)
    assert dataset.manifest.entities["product"].features["v"].missing == 2
    found = dict(
        zip(ids(dataset, "product"), dataset.read(dataset.entity_path("product"))["v"].to_pylist(), strict=True)
    )
    assert found == {"a": [1.0, 2.0], "b": [0.0, 0.0], "c": [3.0, 4.0], "d": [0.0, 0.0], "e": [5.0, 6.0]}


@pytest.mark.parametrize(("bad", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (None, "null")])
def test_an_entry_that_is_no_number_stays_an_error(tmp_path: Path, bad: float | None, shown: str) -> None:
    products = {**PRODUCTS, "v": [None, [1.0, 2.0], None, [3.0, bad], [5.0, 6.0]]}
    with pytest.raises(UserError, match=rf"features\.v: column 'v' of entity 'd' holds {shown};"):
        run(tmp_path, with_features(v=VECTOR), products=products)


def test_lists_without_any_entry(tmp_path: Path) -> None:
    tags = CategoriesFeature(kind="categories", column="tags", table="kind")
    products = {**PRODUCTS, "tags": pa.array([[], None, [], [None], []], pa.list_(pa.null()))}
    dataset = run(tmp_path, with_features(tags=tags), products=products)
    assert dataset.manifest.entities["product"].features["tags"].mean_bag == 0
