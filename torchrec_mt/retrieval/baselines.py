"""Simple rivals on the same anchors: popularity, co-occurrence, BM25; and the oracle, which marks the ceiling.

A ranker takes anchor rows and k and returns ranked rows_BK, best first, -1 padded. Where anchors and candidates are
the same entity, rankers leave the anchor itself out.
"""

import logging
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mt.data.dataset import PreparedDataset, Split

Ranker = Callable[[np.ndarray, int], np.ndarray]


def without_self(ranked_BK: np.ndarray, anchor_B: np.ndarray, k: int, *, same_entity: bool) -> np.ndarray:
    """The first k of each row, the anchor itself left out."""
    if same_entity:
        ranked_BK = _left_justified(ranked_BK, ranked_BK != anchor_B[:, None])
    if ranked_BK.shape[1] < k:
        ranked_BK = np.pad(ranked_BK, ((0, 0), (0, k - ranked_BK.shape[1])), constant_values=-1)
    return ranked_BK[:, :k]


def _left_justified(ranked_BK: np.ndarray, keep_BK: np.ndarray) -> np.ndarray:
    """Kept entries moved left in their order, -1 behind them."""
    order = np.argsort(~keep_BK, axis=1, kind="stable")
    return np.take_along_axis(np.where(keep_BK, ranked_BK, -1), order, axis=1)


def _same_entity(dataset: PreparedDataset, task: str) -> bool:
    info = dataset.manifest.tasks[task]
    return info.anchor == info.candidate


def _popular_first(dataset: PreparedDataset, task: str) -> np.ndarray:
    return np.argsort(-dataset.frequencies(task), kind="stable")


def popularity(dataset: PreparedDataset, task: str) -> Ranker:
    """The task's most frequent training candidates, the same for every anchor."""
    source = dataset.manifest.tasks[task].trained_as or task
    popular_N, same = _popular_first(dataset, source), _same_entity(dataset, task)

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        return without_self(np.tile(popular_N[: k + 1], (len(anchor_B), 1)), anchor_B, k, same_entity=same)

    return rank


def co_occurrence(dataset: PreparedDataset, task: str) -> Ranker:
    """The anchor's own training candidates by count, then by popularity; then popularity."""
    source = dataset.manifest.tasks[task].trained_as or task
    pairs, same = dataset.pairs(source, "train"), _same_entity(dataset, task)
    popular_N = _popular_first(dataset, source)
    place_N = np.empty(len(popular_N), np.int64)
    place_N[popular_N] = np.arange(len(popular_N))
    order = np.lexsort((place_N[pairs["candidate"]], -pairs["count"], pairs["anchor"]))
    candidates = pairs["candidate"][order]
    anchors = dataset.manifest.entities[dataset.manifest.tasks[task].anchor].count
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs["anchor"], minlength=anchors))])

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        start_B, width = offsets[anchor_B], k + 1
        own_B = np.minimum(offsets[anchor_B + 1] - start_B, width)
        at_BK = np.minimum(start_B[:, None] + np.arange(width), max(len(candidates) - 1, 0))
        own_BK = np.where(np.arange(width) < own_B[:, None], candidates[at_BK] if len(candidates) else -1, -1)
        # Popularity behind them, deep enough to fill up after the own ones are left out.
        popular = popular_N[: 2 * width]
        known = np.zeros((len(anchor_B), len(popular_N)), bool)
        row, column = np.nonzero(own_BK >= 0)
        known[row, own_BK[row, column]] = True
        ranked = np.concatenate([own_BK, np.tile(popular, (len(anchor_B), 1))], axis=1)
        keep = np.concatenate([own_BK >= 0, ~known[:, popular]], axis=1)
        return without_self(_left_justified(ranked, keep), anchor_B, k, same_entity=same)

    return rank


def entity_texts(dataset: PreparedDataset, entity: str) -> list[str] | None:
    """Text and category values of every entity, joined; None where the entity has no text."""
    features = dataset.manifest.entities[entity].features
    if not any(feature.kind == "text" for feature in features.values()):
        return None
    parts = []
    for name, feature in features.items():
        if feature.kind == "text":
            parts.append(pc.fill_null(dataset.read(dataset.entity_path(entity), [f"{name}__text"])[0], ""))
        elif feature.kind in ("category", "categories") and feature.table is not None:
            parts.append(_category_texts(dataset, entity, name, feature.table))
    texts = [pc.cast(part, pa.large_string()) for part in parts]
    return pc.binary_join_element_wise(*texts, pa.scalar(" ", pa.large_string())).to_pylist()


def _category_texts(dataset: PreparedDataset, entity: str, feature: str, table: str) -> pa.Array:
    vocabulary = dataset.read(dataset.vocabulary_path(table), ["value", "row"])
    values = np.full(dataset.manifest.tables[table], "", dtype=object)
    values[vocabulary["row"].to_numpy()] = vocabulary["value"].to_numpy(zero_copy_only=False)
    rows = dataset.read(dataset.entity_path(entity), [feature])[feature].combine_chunks()
    lists = pa.ListArray.from_arrays(rows.offsets, pa.array(values[rows.values.to_numpy()], pa.string()))
    return pc.binary_join(lists, " ")


def bm25(dataset: PreparedDataset, task: str) -> Ranker | None:
    """BM25 (Robertson; Lucene's variant of bm25s) over stemmed text and categories; None where a side has no text."""
    import bm25s
    import Stemmer

    info, same = dataset.manifest.tasks[task], _same_entity(dataset, task)
    anchor_texts, candidate_texts = entity_texts(dataset, info.anchor), entity_texts(dataset, info.candidate)
    if anchor_texts is None or candidate_texts is None:
        return None
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # the package sets DEBUG for itself
    stemmer = Stemmer.Stemmer("english")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(candidate_texts, stemmer=stemmer, show_progress=False), show_progress=False)

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        texts = [anchor_texts[row] for row in anchor_B]
        tokens = bm25s.tokenize(texts, stemmer=stemmer, return_ids=False, show_progress=False)
        depth = min(k + 1, len(candidate_texts))
        rows_BK, scores_BK = index.retrieve(tokens, k=depth, show_progress=False, n_threads=2)
        ranked = _left_justified(rows_BK.astype(np.int64), scores_BK > 0)
        return without_self(ranked, anchor_B, k, same_entity=same)

    return rank


def oracle(dataset: PreparedDataset, task: str, split: Split) -> Ranker:
    """The best possible ranking: by the truth where the data knows it, else the split's own pairs, best grade first."""
    info, same = dataset.manifest.tasks[task], _same_entity(dataset, task)
    if dataset.truth_path(task).exists():
        truth = dataset.read(dataset.truth_path(task))
        anchor, candidate, score = (truth[name].to_numpy() for name in ("anchor", "candidate", "score"))
    else:
        pairs = dataset.pairs(task, split)
        anchor, candidate, score = pairs["anchor"], pairs["candidate"], pairs["grade"]
    order = np.lexsort((candidate, -score, anchor))
    candidate = candidate[order]
    count = dataset.manifest.entities[info.anchor].count
    offsets = np.concatenate([[0], np.cumsum(np.bincount(anchor, minlength=count))])

    def rank(anchor_B: np.ndarray, k: int) -> np.ndarray:
        width = k + 1
        at_BK = offsets[anchor_B][:, None] + np.arange(width)
        inside = at_BK < offsets[anchor_B + 1][:, None]
        ranked = np.where(inside, candidate[np.minimum(at_BK, max(len(candidate) - 1, 0))], -1)
        return without_self(ranked, anchor_B, k, same_entity=same)

    return rank
