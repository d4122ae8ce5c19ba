"""Slices against loops: who is in the head, what a column says of an entity, which answers belong to a slice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.raw_shop import PRODUCTS, ids, run, with_features
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.errors import UserError
from torchrec_mt.retrieval.metrics import Relevant
from torchrec_mt.retrieval.slices import (
    Slicing,
    category_feature,
    column_slicing,
    lumped,
    own_labels,
    popularity_bands,
    slice_columns,
    slicing_names,
    slicings,
    target_parts,
)
from torchrec_mt.schema import CategoryFeature, NumberFeature, Table

RELEVANT = Relevant(np.array([0, 2, 3, 6]), np.array([0, 3, 1, 0, 1, 2]), np.ones(6))
"""Three anchors: items 0 and 3; 1; 0, 1 and 2."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    schema = with_features(
        kind=CategoryFeature(kind="category", column="kind", table="kind"),
        maker=CategoryFeature(kind="category", column="maker", table="maker"),
        price=NumberFeature(kind="number", column="price", transform="log1p"),
        weight=NumberFeature(kind="number", column="weight"),
    )
    schema = replace(schema, tables={**schema.tables, "maker": Table(dim=8, min_count=2)})
    products = {**PRODUCTS, "maker": ["x", "x", "y", None, "x"], "weight": [1.0, 1.0, 1.0, 1.0, 9.0]}
    return run(tmp_path_factory.mktemp("shop"), schema, products=products)


def labels(slicing: Slicing, names: list[str]) -> dict[str, str]:
    return {name: slicing.labels[code] for name, code in zip(names, slicing.code.tolist(), strict=True)}


def slow_band(count: int, counts: list[int]) -> int:
    held = sum(other for other in counts if other > count)
    if count == 0 or held >= 0.8 * sum(counts):
        return 2
    return 1 if held >= 0.5 * sum(counts) else 0


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any))
def test_bands_equal_a_slow_twin(counts: list[int]) -> None:
    found = popularity_bands(np.array(counts))
    assert found.tolist() == [slow_band(count, counts) for count in counts]
    assert found[int(np.argmax(counts))] == 0


def test_bands_by_hand() -> None:
    # 100 pairs: 40 and 20 are the head (before 20 there are 40), 20 more stand with it; then 10 (80 before): the tail.
    assert popularity_bands(np.array([10, 40, 0, 20, 20, 10])).tolist() == [2, 0, 2, 0, 0, 2]
    assert popularity_bands(np.array([60, 25, 15])).tolist() == [0, 1, 2]


def test_a_category_is_told_in_the_words_of_the_data(dataset: PreparedDataset) -> None:
    names = ids(dataset, "product")
    kinds = dict(zip(PRODUCTS["sku"], PRODUCTS["kind"], strict=True))
    assert labels(column_slicing(dataset, "product", "kind"), names) == kinds
    # y stands once, which is too rare for a row of its own.
    makers = {"a": "x", "b": "x", "c": "(rare)", "d": "(missing)", "e": "x"}
    assert labels(column_slicing(dataset, "product", "maker"), names) == makers
    rows = np.array([names.index("d"), names.index("a")])
    assert labels(column_slicing(dataset, "product", "maker", rows), ["d", "a"]) == {"d": "(missing)", "a": "x"}


def test_a_value_called_as_one_of_our_labels_is_another_label(tmp_path: Path) -> None:
    schema = with_features(kind=CategoryFeature(kind="category", column="kind", table="kind"))
    kinds = ["(missing)", "(missing)", "tea", "tea", None]
    dataset = run(tmp_path, schema, products={**PRODUCTS, "kind": kinds})
    found = labels(column_slicing(dataset, "product", "kind"), ids(dataset, "product"))
    assert found == {"a": "'(missing)'", "b": "'(missing)'", "c": "tea", "d": "tea", "e": "(missing)"}


def test_a_number_is_cut_into_quarters_of_what_the_data_gave(dataset: PreparedDataset) -> None:
    names = ids(dataset, "product")
    found = labels(column_slicing(dataset, "product", "price"), names)
    # A null price has become the mean of the logarithms: (2 * 3 * 4 * 5) ** (1 / 4) - 1 = 2.31.
    assert found == {
        "a": "q1 (1 to 2)",
        "b": "q1 (1 to 2)",
        "e": "q2 (2.31 to 2.31)",
        "c": "q3 (3 to 3)",
        "d": "q4 (4 to 4)",
    }
    found = labels(column_slicing(dataset, "product", "weight"), names)
    assert found == dict.fromkeys("abcd", "q1 (1 to 1)") | {"e": "q4 (9 to 9)"}


def test_a_task_is_parted_by_what_it_has(dataset: PreparedDataset) -> None:
    columns = slice_columns(dataset, ["product.price", "maker"])
    assert columns == [("product", "price"), ("product", "maker")]
    search = ["target_product_kind", "target_product_price", "target_product_maker"]
    plain = ["anchor_popularity", "anchor_words", "target_training", "target_popularity"]
    assert slicing_names(dataset, "search", columns) == plain + search
    queries = ids(dataset, "query")
    parted = slicings(dataset, "search", np.array([queries.index("q2")]), columns)
    assert list(parted.anchor) == ["anchor_popularity", "anchor_words"]
    assert labels(parted.anchor["anchor_words"], ["q2"]) == {"q2": "1"}
    assert list(parted.target) == ["target_training", "target_popularity", *search]
    cold = {name: "cold" if name == "e" else "warm" for name in "abcde"}  # e is in no training pair of any task
    assert labels(parted.target["target_training"], ids(dataset, "product")) == cold
    # Products' titles are no queries.
    together = slicings(dataset, "together", np.arange(2), columns)
    assert [*together.anchor, *together.target] == [
        "anchor_popularity",
        *(name.replace("target", "anchor") for name in search),
        "target_training",
        "target_popularity",
        *search,
    ]
    assert category_feature(dataset, "query") is None


@pytest.mark.parametrize("name", ["colour", "query.kind", "title", "product.key", ""])
def test_a_column_that_is_not_there(dataset: PreparedDataset, name: str) -> None:
    with pytest.raises(UserError) as caught:
        slice_columns(dataset, ["kind", name])
    assert f"evaluate.slices: '{name}' is no column" in str(caught.value)
    assert "'product.kind', 'product.maker', 'product.price', 'product.weight'" in str(caught.value)


def test_the_largest_are_kept_and_the_others_are_one() -> None:
    code = np.repeat(np.arange(14), [1, 9, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0])
    small = lumped(Slicing([f"c{number}" for number in range(14)], np.arange(14)), code)
    assert small.labels == ["c12", "c11", "c10", "c1", "c9", "c8", "c7", "c6", "c5", "c4", "(other)"]
    assert [small.labels[number] for number in small.code.tolist()] == [
        f"c{number}" if number in (1, *range(4, 13)) else "(other)" for number in range(14)
    ]
    # Eleven need no other one, and keep their order.
    assert lumped(Slicing("abc", np.arange(3)), np.array([2, 0, 2])).labels == ["a", "c"]


def test_right_answers_are_parted() -> None:
    slicing = Slicing(("new", "old"), np.array([1, 0, 1, 1]))
    parts = {label: RELEVANT.where(keep) for label, keep in target_parts(slicing, RELEVANT)}
    found = {
        label: [part.items[part.offsets[b] : part.offsets[b + 1]].tolist() for b in range(3)]
        for label, part in parts.items()
    }
    assert found == {"new": [[], [1], [1]], "old": [[0, 3], [], [0, 2]]}
    assert own_labels(slicing, RELEVANT).tolist() == ["old", "new", "(mixed)"]
    assert own_labels(slicing, RELEVANT.of_anchors(np.zeros(3, bool))).tolist() == []
    assert RELEVANT.of_anchors(np.array([False, True, True])).offsets.tolist() == [0, 1, 4]
    assert RELEVANT.rows(1, 3).items.tolist() == [1, 0, 1, 2]
