"""BM25 over the words that the model reads too: the rival of every task whose two ends have text.

Words come from preparation's own tokeniser (normalisation, the feature's stem), so the rival knows no language less
than the model does. Runs of letters in scripts that put no blanks between words give their pairs of neighbours as well,
as Lucene's CJK analyser does. There is no list of stop words: inverse document frequency does that in any language.
"""

import logging
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array

from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.retrieval.baselines.ranker import (
    Ranker,
    best_of_sparse,
    in_blocks,
    same_entity,
)

_NO_BLANKS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"


def bm25(dataset: PreparedDataset, task: str, *, categories: bool = True) -> Ranker | None:
    """BM25 (Robertson; Lucene's variant of bm25s) over words of texts and categories; None where a side has none.

    Args:
        categories: count the words of categories too, not those of texts alone.
    """
    import bm25s

    info, same = dataset.manifest.tasks[task], same_entity(dataset, task)
    candidates = entity_words(dataset, info.candidate, categories=categories)
    anchors = candidates if same else entity_words(dataset, info.anchor, categories=categories)
    if not any(candidates) or not any(anchors):
        return None
    count = len(candidates)
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # the package sets DEBUG for itself
    index = bm25s.BM25()
    index.index(candidates, show_progress=False)

    word_of = index.vocab_dict
    # What a word gives to each candidate that has it: rows are words.
    stored = index.scores
    score_VN = csr_array(
        (stored["data"], stored["indices"], stored["indptr"]), shape=(len(stored["indptr"]) - 1, count)
    )

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        asked = [[word_of[word] for word in anchors[row] if word in word_of] for row in anchor_B]
        offsets = np.concatenate([[0], np.cumsum([len(words) for words in asked])])
        words = np.fromiter(chain.from_iterable(asked), np.int64, offsets[-1])
        asked_BV = csr_array((np.ones(len(words), np.float32), words, offsets), shape=(len(asked), score_VN.shape[0]))
        return best_of_sparse(csr_array(asked_BV @ score_VN), anchor_B, k, same_entity=same)

    return in_blocks(rank, count)


def entity_words(dataset: PreparedDataset, entity: str, *, categories: bool = True) -> list[list[str]]:
    """The words of every entity's texts (and categories), in row order; empty lists where it has no text feature.

    A category is stemmed as the entity's first text is.
    """
    by_stem: dict[str, list[pa.Array]] = {}
    kinds = []
    declared: Any = dataset.manifest.declaration["entities"]
    for name, feature in dataset.manifest.entities[entity].features.items():
        if feature.kind == "text":
            texts = dataset.read(dataset.entity_path(entity), [f"{name}__text"])[0]
            by_stem.setdefault(declared[entity]["features"][name]["stem"], []).append(pc.fill_null(texts, ""))
        elif categories and feature.kind in ("category", "categories") and feature.table is not None:
            kinds.append(_category_texts(dataset, entity, name, feature.table))
    if not by_stem:
        return [[]] * dataset.manifest.entities[entity].count
    next(iter(by_stem.values())).extend(kinds)
    words = [_words(_joined(texts), stem) for stem, texts in by_stem.items()]
    return words[0] if len(words) == 1 else [[*chain(*parts)] for parts in zip(*words, strict=True)]


def _joined(texts: list[pa.Array]) -> pa.Array:
    """Row by row, on one line."""
    large = [pc.cast(text, pa.large_string()) for text in texts]
    return pc.replace_substring(pc.binary_join_element_wise(*large, pa.scalar(" ", pa.large_string())), "\n", " ")


def _words(texts: pa.Array, stem: str, *, block: int = 100_000) -> list[list[str]]:
    """Words of each text; what stands for a pair of neighbouring letters cannot be taken for a word."""
    from torchrec_mt.data.preparation.words import WORD, tokenise  # brings DuckDB, which nothing else here needs
    from torchrec_mt.schema import TextFeature

    pairs = (2,) if pc.any(pc.match_substring_regex(texts, _NO_BLANKS)).as_py() else ()
    feature = TextFeature(kind="text", columns=(), table="", stem=stem, char_ngrams=pairs)
    found: list[list[str]] = []
    for start in range(0, len(texts), block):
        tokens = tokenise(texts.slice(start, block), feature)
        is_word = pc.equal(tokens.kind, WORD)
        keep = pc.or_(is_word, pc.match_substring_regex(tokens.value, _NO_BLANKS)).to_numpy(zero_copy_only=False)
        values = pc.if_else(is_word, tokens.value, pc.binary_join_element_wise("pair", tokens.value, " "))
        bags = tokens.bags.kept(keep[tokens.bags.values])
        flat = values.to_numpy(zero_copy_only=False)[bags.values].tolist()  # the same few strings again and again
        found += [flat[first:last] for first, last in zip(bags.offsets[:-1], bags.offsets[1:], strict=True)]
    return found


def _category_texts(dataset: PreparedDataset, entity: str, feature: str, table: str) -> pa.Array:
    vocabulary = dataset.read(dataset.vocabulary_path(table), ["value", "row"])
    values = np.full(dataset.manifest.tables[table], "", dtype=object)
    values[vocabulary["row"].to_numpy()] = vocabulary["value"].to_numpy(zero_copy_only=False)
    rows = dataset.read(dataset.entity_path(entity), [feature])[feature].combine_chunks()
    lists = pa.ListArray.from_arrays(rows.offsets, pa.array(values[rows.values.to_numpy()], pa.string()))
    return pc.binary_join(lists, " ")
