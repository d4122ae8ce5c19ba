"""Small training pairs for the rivals, on the tiny dataset; and what every ranking by a score is held against."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny import PRODUCTS, QUERIES, TASKS, write_tiny
from torchrec_mt.data.dataset import PreparedDataset

SEEN_QUERIES, SEEN_PRODUCTS = QUERIES - 4, PRODUCTS - 9
"""The last queries and products stand in no training pair."""


def train_on(dataset: PreparedDataset, task: str, pairs: dict[tuple[int, int], float]) -> None:
    """Replaces the training pairs of a task: (anchor, candidate) -> count."""
    anchor, candidate = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    count = np.array([pairs[pair] for pair in sorted(pairs)], np.float32)
    ones = np.ones(len(count), np.float32)
    columns = {"anchor": anchor, "candidate": candidate, "count": count, "weight": ones, "grade": ones}
    pq.write_table(pa.table(columns), dataset.pairs_path(task, "train"))
    for end, rows in (("anchor", anchor), ("candidate", candidate)):
        entities = QUERIES if (end, task) == ("anchor", "find") else PRODUCTS
        table = pa.table({"train_count": np.bincount(rows, minlength=entities)})
        pq.write_table(table, dataset.frequencies_path(task, "anchor" if end == "anchor" else "candidate"))


def small_world(path: Path) -> PreparedDataset:
    """`find` from queries, `alike` symmetric, `goes_with` directed: 5 candidates an anchor, mostly of its group."""
    dataset = write_tiny(path)
    rng = np.random.default_rng(1)
    for task, (end, _) in TASKS.items():
        pairs: dict[tuple[int, int], float] = {}
        for anchor in range(SEEN_QUERIES if end == "query" else SEEN_PRODUCTS):
            near = np.arange((anchor + (task == "goes_with")) % 6, SEEN_PRODUCTS, 6)
            for candidate in [*rng.choice(near, 4, replace=False), rng.integers(SEEN_PRODUCTS)]:
                if end == "query" or candidate != anchor:
                    pairs[anchor, int(candidate)] = float(rng.integers(1, 6)) / 2
        if task == "alike":
            pairs |= {(candidate, anchor): count for (anchor, candidate), count in pairs.items()}
        train_on(dataset, task, pairs)
    return dataset


def anchors_of(task: str) -> np.ndarray:
    """All anchors of a task, those without training pairs too."""
    return np.arange(QUERIES if task == "find" else PRODUCTS)


def dense(dataset: PreparedDataset, task: str, *, own_item: bool = False) -> np.ndarray:
    """The interaction matrix, entry by entry: count_AN."""
    count_AN = np.zeros((len(anchors_of(task)), PRODUCTS))
    pairs = dataset.pairs(task, "train")
    for anchor, candidate, count in zip(pairs["anchor"], pairs["candidate"], pairs["count"], strict=True):
        count_AN[anchor, candidate] += count
    if own_item and task != "find":
        for anchor in range(PRODUCTS):
            if count_AN[anchor].any():
                count_AN[anchor, anchor] = 1
    return count_AN


def by_popularity(dataset: PreparedDataset, task: str) -> list[int]:
    frequency = dataset.frequencies(task)
    return sorted(range(PRODUCTS), key=lambda row: (-frequency[row], row))


def assert_ranked(
    ranked_BK: np.ndarray, score_AN: np.ndarray, dataset: PreparedDataset, task: str, *, rel: float = 1e-6
) -> None:
    """All anchors are ranked by a score (-inf: none), near ties in any order, and then by popularity."""
    k = ranked_BK.shape[1]
    for anchor, ranked in zip(anchors_of(task), ranked_BK.tolist(), strict=True):
        others = [row for row in range(PRODUCTS) if task == "find" or row != anchor]
        score_N = score_AN[anchor]
        scored = [row for row in others if np.isfinite(score_N[row])]
        head, tail = ranked[: len(scored)], ranked[len(scored) :]
        best = np.sort(score_N[scored])[::-1][:k]
        assert set(head) <= set(scored)
        assert score_N[head] == pytest.approx(best, rel=rel, abs=rel)
        rest = [row for row in by_popularity(dataset, task) if row in others and row not in scored]
        assert tail == (rest + [-1] * k)[: len(tail)]
        found = [row for row in ranked if row >= 0]
        assert len(set(found)) == len(found) == min(k, len(others))
