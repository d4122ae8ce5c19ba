"""Text into tokens against a slow twin, in any script; vocabularies by hand."""

import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import Stemmer
from hypothesis import given
from hypothesis import strategies as st

from tests.raw_shop import PRODUCTS, make_schema, run, with_features
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.preparation import words
from torchrec_mt.schema import (
    CategoriesFeature,
    CategoryFeature,
    NumberFeature,
    Schema,
    Table,
    TextFeature,
    VectorFeature,
)

FEATURE = TextFeature(kind="text", columns=("title",), table="words")


def slow_twin(text: str) -> list[tuple[str, str]]:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    stemmer, tokens = Stemmer.Stemmer("english"), []
    for word in "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded).split():
        tokens.append(("word", stemmer.stemWord(word) or word))
        for length in (3, 4):
            marked = f"<{word}>"
            tokens += [("ngram", marked[i : i + length]) for i in range(len(marked) - length + 1)]
    return tokens


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"), max_size=30), max_size=6),
    st.sampled_from([(1, 1), (20, 3), (words._BLOCK, words._WINDOWS)]),
)
def test_tokens_equal_the_slow_twin_however_they_fall_into_blocks(texts: list[str], sizes: tuple[int, int]) -> None:
    texts = [re.sub(r"[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", " ", text) for text in texts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "_BLOCK", sizes[0])
        patch.setattr(words, "_WINDOWS", sizes[1])
        found = words.tokenise(pa.array(texts, pa.string()), FEATURE)
    assert len(set(zip(found.kind.to_pylist(), found.value.to_pylist(), strict=True))) == len(found.value)
    kinds, values = found.kind.to_pylist(), found.value.to_pylist()
    for row, text in enumerate(texts):
        start, stop = found.bags.offsets[row : row + 2]
        assert [(kinds[n], values[n]) for n in found.bags.values[start:stop]] == slow_twin(text)


def bags(dataset: PreparedDataset, entity: str, feature: str) -> list[list[str]]:
    """Bags as values, by the vocabulary file."""
    table = dataset.manifest.entities[entity].features[feature].table
    vocabulary = pq.read_table(dataset.vocabulary_path(table)).to_pydict()
    value = dict(zip(vocabulary["row"], vocabulary["value"], strict=True)) | {0: "?"}
    rows = pq.read_table(dataset.entity_path(entity), columns=[feature])[feature].to_pylist()
    return [[value[row] for row in bag] for bag in rows]


def test_query_and_title_share_one_vocabulary(tmp_path: Path) -> None:
    dataset = run(tmp_path, make_schema())
    vocabulary = pq.read_table(dataset.vocabulary_path("words")).to_pydict()
    # Document frequency over titles and queries: tea 3 + 1, hat 2 + 1, wool 2, the rest 1; ties by value.
    assert vocabulary["value"] == ["tea", "hat", "wool", "blue", "green", "pot", "red"]
    assert vocabulary["count"] == [4, 3, 2, 1, 1, 1, 1]
    assert vocabulary["row"] == [1, 2, 3, 4, 5, 6, 7]
    assert dataset.manifest.tables["words"] == 8
    assert bags(dataset, "product", "title")[:2] == [["red", "wool", "hat"], ["blue", "wool", "hat"]]
    assert bags(dataset, "query", "text") == [["hat"], ["tea"]]


def test_rare_tokens_are_dropped_rare_ids_go_to_row_zero(tmp_path: Path) -> None:
    tables = {"sku": Table(dim=8, max_rows=3), "words": Table(dim=8, min_count=2)}
    dataset = run(tmp_path, make_schema(tables=tables))
    assert bags(dataset, "product", "title") == [["wool", "hat"], ["wool", "hat"], ["tea"], ["tea"], ["tea"]]
    rows = pq.read_table(dataset.entity_path("product"), columns=["key"])["key"].to_pylist()
    assert rows == [[1], [2], [0], [0], [0]]


def test_categories_numbers_and_vectors(tmp_path: Path) -> None:
    products = {
        **PRODUCTS,
        "kind": ["hat", "hat", "", None, "pot"],
        "tags": ["x|y", "x", "", None, "y|x|z"],
        "image": [[1.0, 2.0]] * 5,
    }
    schema = with_features(
        kind=CategoryFeature(kind="category", column="kind", table="kind"),
        tags=CategoriesFeature(kind="categories", column="tags", table="kind", separator="|"),
        price=NumberFeature(kind="number", column="price"),
        image=VectorFeature(kind="vector", column="image", dim=2),
    )
    dataset = run(tmp_path, schema, products=products)
    assert bags(dataset, "product", "kind") == [["hat"], ["hat"], [], [], ["pot"]]
    assert bags(dataset, "product", "tags") == [["x", "y"], ["x"], [], [], ["y", "x", "z"]]
    prices = pq.read_table(dataset.entity_path("product"), columns=["price"])["price"].to_pylist()
    assert prices[4] == 0.0  # null becomes the mean
    assert abs(sum(prices)) < 1e-5


def test_one_text_of_a_million_tokens_is_cut_and_counted(tmp_path: Path) -> None:
    products = {**PRODUCTS, "title": ["word " * 1_000_000, *PRODUCTS["title"][1:]]}
    dataset = run(tmp_path, make_schema(), products=products)
    assert dataset.manifest.entities["product"].features["title"].truncated == 1
    assert len(bags(dataset, "product", "title")[0]) == 512


def test_one_text_of_a_million_distinct_tokens(tmp_path: Path) -> None:
    products = {**PRODUCTS, "title": [" ".join(f"w{n}" for n in range(1_000_000)), *PRODUCTS["title"][1:]]}
    schema = with_title(char_ngrams=(3,))
    dataset = run(tmp_path, schema, products=products)
    assert dataset.manifest.tables["words"] > 900_000
    assert dataset.manifest.entities["product"].features["title"].truncated == 1
    bag = bags(dataset, "product", "title")
    assert bag[0][:8] == ["w0", "<w0", "w0>", "w1", "<w1", "w1>", "w2", "<w2"]
    assert len(bag[0]) == 512
    assert bag[2] == ["tea", "<te", "tea", "ea>"]


def test_text_in_any_script(tmp_path: Path) -> None:
    titles = ["红茶 茶壶", "قبعة صوف", "चाय पत्ती", "🍵 чай", "ティーポット"]
    dataset = run(tmp_path, make_schema(), products={**PRODUCTS, "title": titles})
    found = bags(dataset, "product", "title")
    assert found[0] == ["红茶", "茶壶"]
    assert all(found)


def with_title(**settings: Any) -> Schema:
    """The schema with other settings of the title."""
    schema = make_schema()
    product = schema.entities["product"]
    title = replace(product.features["title"], **settings)
    return replace(
        schema,
        entities={**schema.entities, "product": replace(product, features={**product.features, "title": title})},
    )


def test_idf_weights_mean_one_over_the_vocabulary(tmp_path: Path) -> None:
    dataset = run(tmp_path, with_title(weights="idf"))
    table = pq.read_table(dataset.entity_path("product"), columns=["title", "title__weight"])
    weight_of = {
        row: weight
        for bag, weights in zip(table["title"].to_pylist(), table["title__weight"].to_pylist(), strict=True)
        for row, weight in zip(bag, weights, strict=True)
    }
    assert weight_of[1] < weight_of[3] < weight_of[7]  # tea in 4 texts, wool in 2, red in 1
