"""BM25: its words, a slow twin of its scores, the languages it must know, and catalogues without words."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.raw_shop import given, ids, make_schema, run
from tests.shop import prepared_debug_shop, shared_root
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.bm25 import bm25, entity_words
from torchrec_mt.retrieval.baselines.names import DEFAULTS
from torchrec_mt.retrieval.baselines.rankers import baseline_rankers
from torchrec_mt.retrieval.evaluator import EvaluateConfig, split_anchors
from torchrec_mt.schema import CategoryFeature, Schema, Table, TextFeature


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return prepared_debug_shop(shared_root(tmp_path_factory))


def slow_scores(query: list[str], documents: list[list[str]], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene: log(1 + (N - df + .5) / (df + .5)) tf / (tf + k1 (1 - b + b L / mean)), summed over the query's words."""
    mean = sum(map(len, documents)) / len(documents)
    holding = {word: sum(word in document for document in documents) for word in query}
    scores = []
    for document in documents:
        score, counts = 0.0, Counter(document)
        for word in query:
            idf = math.log(1 + (len(documents) - holding[word] + 0.5) / (holding[word] + 0.5))
            score += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("task", ["search", "similar"])
def test_bm25_equals_a_slow_twin(dataset: PreparedDataset, task: str) -> None:
    info, ranker = dataset.manifest.tasks[task], bm25(dataset, task)
    assert ranker is not None
    queries, documents = entity_words(dataset, info.anchor), entity_words(dataset, info.candidate)
    anchors = split_anchors(dataset, task, EvaluateConfig(max_anchors=6))
    ranked_BK = ranker(anchors, 100)
    assert (ranked_BK[:, 0] >= 0).sum() >= 4, "a query may be all typing errors, but not most"
    for anchor, ranked in zip(anchors, ranked_BK, strict=True):
        scores = np.array(slow_scores(queries[anchor], documents))
        if task == "similar":
            scores[anchor] = 0.0
        best = np.sort(scores)[::-1][:100]
        found = ranked[ranked >= 0]
        assert len(found) == (best > 0).sum()
        assert len(set(found)) == len(found)
        assert scores[found] == pytest.approx(best[: len(found)], rel=1e-5)  # products of equal score in any order


def test_without_categories_words_are_those_of_titles(dataset: PreparedDataset) -> None:
    both, titles = (entity_words(dataset, "product", categories=flag) for flag in (True, False))
    assert all(few == all_of_them[: len(few)] for few, all_of_them in zip(titles, both, strict=True))
    assert all(0 < len(few) < len(all_of_them) for few, all_of_them in zip(titles, both, strict=True))
    anchors = split_anchors(dataset, "similar", EvaluateConfig(max_anchors=20))
    known, bare = (bm25(dataset, "similar", categories=flag) for flag in (True, False))
    assert known is not None
    assert bare is not None
    assert bare(anchors, 10).tolist() != known(anchors, 10).tolist()
    config = EvaluateConfig(baselines=("bm25_text",))
    assert baseline_rankers(dataset, "similar", config)["bm25_text"](anchors, 10).tolist() == bare(anchors, 10).tolist()


def test_words_are_those_of_title_and_categories(dataset: PreparedDataset) -> None:
    features = dataset.manifest.entities["product"].features
    categories = [name for name, feature in features.items() if feature.kind in ("category", "categories")]
    titles = pq.read_table(dataset.entity_path("product"), columns=["title__text"])["title__text"].to_pylist()
    words = entity_words(dataset, "product")
    assert categories
    for title, found in zip(titles, words, strict=True):
        assert len(found) > len(title.split())
    bare = next(row for row, title in enumerate(titles) if title.split()[0].isalpha())
    assert words[bare][0][:3] == titles[bare].split()[0].lower()[:3]


def text(column: str, stem: str = "english") -> TextFeature:
    return TextFeature(kind="text", columns=(column,), table="words", stem=stem, char_ngrams=())


def search_schema(query: TextFeature, **product: Any) -> Schema:
    """Search only, with these features of queries and products."""
    schema = make_schema()
    entities = {
        "query": replace(schema.entities["query"], features={"text": query}),
        "product": replace(schema.entities["product"], features=product),
    }
    tasks = {"search": replace(schema.tasks["search"], pairs=given())}
    tables = {name: Table(dim=8) for name in {query.table, *(feature.table for feature in product.values())}}
    return replace(schema, entities=entities, tasks=tasks, tables=tables)


def first_found(dataset: PreparedDataset) -> dict[str, str]:
    """Query -> the sku that BM25 puts first, "-" for none."""
    ranker = bm25(dataset, "search")
    assert ranker is not None
    queries, skus = ids(dataset, "query"), [*ids(dataset, "product"), "-"]
    ranked = ranker(np.arange(len(queries)), 1)
    return dict(zip(queries, (skus[row] for row in ranked[:, 0]), strict=True))


def products(*titles: str | None, kinds: list[str] | None = None) -> dict[str, list[Any]]:
    return {"sku": list("abcde"), "title": list(titles), "kind": kinds or ["x"] * 5, "price": [1.0] * 5}


def test_stems_are_of_the_declared_language(tmp_path: Path) -> None:
    schema = search_schema(text("words", "german"), title=text("title", "german"))
    shop = products("Vogel", "rote Häuser", "Tee", "Teekanne", "Hut")
    dataset = run(tmp_path, schema, products=shop, queries={"query": ["q1", "q2"], "words": ["HAUS", "Tee"]})
    assert first_found(dataset) == {"q1": "b", "q2": "c"}


def test_scripts_without_blanks_are_found_inside_a_run(tmp_path: Path) -> None:
    schema = search_schema(text("words", "none"), title=text("title", "none"))
    shop = products("红色毛衣", "绿茶茶壶", "เสื้อกันฝน", "tea", "hat")
    dataset = run(tmp_path, schema, products=shop, queries={"query": ["q1", "q2"], "words": ["毛衣", "กันฝน tea"]})
    assert first_found(dataset)["q1"] == "a"
    words = dict(zip(ids(dataset, "product"), entity_words(dataset, "product"), strict=True))
    assert words["d"] == ["tea"], "only scripts without blanks are cut into pairs"
    assert {"红色毛衣", "pair 毛衣"} <= set(words["a"])
    assert "pair กั" in words["c"]


def test_two_texts_of_different_languages_and_a_category(tmp_path: Path) -> None:
    features = {
        "title": text("title", "german"),
        "sort": CategoryFeature(kind="category", column="kind", table="kind"),
        "code": text("sku", "none"),
    }
    shop = products("rote\nHäuser", None, "", "Tee", "Hut", kinds=["Bücher", "hats", "x y", "", "z"])
    dataset = run(tmp_path, search_schema(text("words"), **features), products=shop)
    words = dict(zip(ids(dataset, "product"), entity_words(dataset, "product"), strict=True))
    assert words == {
        "a": ["rot", "haus", "buch", "a"],
        "b": ["hat", "b"],
        "c": ["x", "y", "c"],
        "d": ["tee", "d"],
        "e": ["hut", "z", "e"],
    }


@pytest.mark.parametrize("title", [None, "", "- ! -"])
@pytest.mark.parametrize("side", ["products", "queries"])
def test_a_side_without_words_has_no_bm25(tmp_path: Path, title: str | None, side: str) -> None:
    shop, queries = products("hat", "hats", "tea", "tea", "pot"), {"query": ["q1", "q2"], "words": ["hat", "tea"]}
    if side == "products":
        shop = products(*[title] * 4, "?")
    else:
        queries["words"] = [title or "", "?"]
    dataset = run(tmp_path, search_schema(text("words"), title=text("title")), products=shop, queries=queries)
    assert bm25(dataset, "search") is None
    assert set(baseline_rankers(dataset, "search", EvaluateConfig())) == {*DEFAULTS} - {"bm25"}


def test_short_and_common_words_are_words(tmp_path: Path) -> None:
    shop = products("a", "the", "and or", "", "?")
    schema = search_schema(text("words"), title=text("title"))
    dataset = run(
        tmp_path, schema, products=shop, queries={"query": ["q1", "q2"], "words": ["A", "nothing and THE the"]}
    )
    assert first_found(dataset) == {"q1": "a", "q2": "b"}


def test_an_entity_without_text_has_no_words(tmp_path: Path) -> None:
    feature = CategoryFeature(kind="category", column="kind", table="kind")
    dataset = run(tmp_path, search_schema(text("words"), sort=feature))
    assert entity_words(dataset, "product") == [[]] * 5
    assert bm25(dataset, "search") is None
