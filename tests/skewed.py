"""The tiny dataset with many pairs of skewed popularity: what logQ is there for."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.tiny import PRODUCTS, QUERIES, write_tiny
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.links import write_links

PAIRS, KNOWN = 12_000, 12


def write_skewed(path: Path) -> PreparedDataset:
    """Tasks `find` (from queries) and `alike` (from products) get 12,000 training pairs, 12 candidates an anchor.

    Every product is among the pairs, the most popular ten times as often as the rarest and more. Two queries of three
    name negatives (tests/tiny.py), none of them known to go with the query.
    """
    dataset, rng = write_tiny(path, train_pairs=PAIRS), np.random.default_rng(3)
    named = dataset.named_negatives("find")
    assert named is not None
    for name, anchors in (("find", QUERIES), ("alike", PRODUCTS)):
        barred = np.zeros((anchors, PRODUCTS), bool)
        rows = np.arange(anchors)
        barred[named.of(rows) if name == "find" else (rows, rows)] = True
        known, uses_N = np.zeros((anchors, KNOWN), np.int64), np.zeros(PRODUCTS)
        for row in range(anchors):
            known[row] = np.argsort(uses_N + rng.random(PRODUCTS) + np.where(barred[row], np.inf, 0))[:KNOWN]
            uses_N[known[row]] += 1
        weight = 1 / (4.0 + rng.permutation(PRODUCTS))[known]
        edges = np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1)
        anchor_B = rng.integers(0, anchors, PAIRS)
        column_B = (rng.random(PAIRS)[:, None] > edges[anchor_B]).sum(axis=1).clip(max=KNOWN - 1)
        _replace(dataset, name, (anchor_B, anchors), (known[anchor_B, column_B], PRODUCTS))
    return dataset


def _replace(
    dataset: PreparedDataset, name: str, anchor: tuple[np.ndarray, int], candidate: tuple[np.ndarray, int]
) -> None:
    """Writes other training pairs, with all that is counted from them. Each end is its rows and its entities."""
    ones = np.ones(PAIRS, np.float32)
    columns = {"anchor": anchor[0], "candidate": candidate[0], "count": ones, "weight": ones, "grade": ones}
    pq.write_table(pa.table(columns), dataset.pairs_path(name, "train"), row_group_size=1000)
    for end, other, own, linked in (
        ("anchor", "candidates", anchor, candidate),
        ("candidate", "anchors", candidate, anchor),
    ):
        frequency = pa.table({"train_count": np.bincount(own[0], minlength=own[1])})
        pq.write_table(frequency, dataset.frequencies_path(name, end))  # type: ignore[arg-type]
        distinct = np.unique(np.stack([own[0], linked[0]], axis=1), axis=0)
        lengths = np.bincount(distinct[:, 0], minlength=own[1])
        write_links(dataset.known_path(name), other, lengths, linked[1], [distinct[:, 1]])
