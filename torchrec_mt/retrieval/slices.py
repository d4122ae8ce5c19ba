"""How anchors and their right answers are parted: by popularity, training, words, and columns of the entity data.

A slice of anchors is judged on those anchors alone. A slice of targets keeps the relevant items of one kind, and with
them the anchors that have such an item; the ranking is the same, over the whole catalogue. The names say which:
`anchor_...` or `target_...`, and for a column of the data the entity and the feature, as in `target_product_brand`.

Legend: B anchors, N entities of one end.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mt.data.dataset import ENDS, End, PreparedDataset
from torchrec_mt.data.store import EntityStore
from torchrec_mt.errors import UserError
from torchrec_mt.retrieval.metrics import Relevant

HEAD, TORSO = 0.5, 0.8
BANDS = ("head", "torso", "tail")
LARGEST = 10
LEAST = 20
"""Anchors of a slice, below which an experiment does not tell of it."""
RARE, MISSING, OTHER, MIXED = _OURS = "(rare)", "(missing)", "(other)", "(mixed)"
_SLICED = ("category", "number")


@dataclass(frozen=True)
class Slicing:
    """A way to part things: code i stands for label i.

    Args:
        labels: in the order in which a reader wants them.
        code: int, of each anchor that is judged, or of each candidate of the catalogue.
    """

    labels: Sequence[str]
    code: np.ndarray


@dataclass(frozen=True)
class Slicings:
    """All ways to part a task, by name.

    Args:
        anchor: codes of the anchors that are judged. target: codes of the catalogue.
    """

    anchor: Mapping[str, Slicing]
    target: Mapping[str, Slicing]


def slice_columns(dataset: PreparedDataset, names: Sequence[str]) -> list[tuple[str, str]]:
    """Entity and feature of each column that is named, "product.brand" or "brand" (of every entity that has it).

    Raises:
        UserError: no such column of kind category or number; the message lists those there are.
    """
    known = [
        (entity, feature)
        for entity, info in dataset.manifest.entities.items()
        for feature, about in info.features.items()
        if about.kind in _SLICED
    ]
    found = []
    for name in names:
        entity, _, feature = name.rpartition(".")
        meant = [column for column in known if column[1] == feature and entity in ("", column[0])]
        if not meant:
            listed = ", ".join(f"'{entity}.{feature}'" for entity, feature in known) or "none of them has such a column"
            raise UserError(
                f"evaluate.slices: '{name}' is no column to cut slices by; entities have these of kind category or "
                f"number: {listed}"
            )
        found += meant
    return list(dict.fromkeys(found))


def category_feature(dataset: PreparedDataset, entity: str) -> str | None:
    """The feature that is an entity's category: the one of this name, else its first of kind category; None if none."""
    features = dataset.manifest.entities[entity].features
    found = [name for name, info in features.items() if info.kind == "category"]
    return "category" if "category" in found else next(iter(found), None)


def _columns(dataset: PreparedDataset, task: str, end: End, columns: Sequence[tuple[str, str]]) -> list[str]:
    """Features by which one end of a task is cut: its category, and those asked for."""
    entity: str = getattr(dataset.manifest.tasks[task], end)
    category = category_feature(dataset, entity)
    asked = [feature for owner, feature in columns if owner == entity]
    return list(dict.fromkeys([*([category] if category else []), *asked]))


def _column_name(dataset: PreparedDataset, task: str, end: End, feature: str) -> str:
    return f"{'anchor' if end == 'anchor' else 'target'}_{getattr(dataset.manifest.tasks[task], end)}_{feature}"


def slicing_names(dataset: PreparedDataset, task: str, columns: Sequence[tuple[str, str]]) -> list[str]:
    """Names of all slicings that the task can have; `slicings` leaves out those that its data has nothing for."""
    named = [_column_name(dataset, task, end, f) for end in ENDS for f in _columns(dataset, task, end, columns)]
    return ["anchor_popularity", "anchor_words", "target_training", "target_popularity", *named]


def slicings(
    dataset: PreparedDataset, task: str, anchor_B: np.ndarray, columns: Sequence[tuple[str, str]] = ()
) -> Slicings:
    """The ways to part a task.

    Args:
        anchor_B: rows of the anchors that are judged. columns: see `slice_columns`.
    """
    info = dataset.manifest.tasks[task]
    anchor: dict[str, Slicing] = {}
    cold_N = dataset.train_counts(info.candidate) == 0
    target = {"target_training": Slicing(("cold", "warm"), np.where(cold_N, 0, 1))}
    anchor_count_N, target_count_N = dataset.anchor_frequencies(task), dataset.frequencies(task)
    if target_count_N.any():
        anchor["anchor_popularity"] = _popularity(anchor_count_N, anchor_B)
        target["target_popularity"] = _popularity(target_count_N)
    words = _words(dataset, task, anchor_B)
    if words:
        anchor["anchor_words"] = words
    for end in ENDS:
        into, rows = (anchor, anchor_B) if end == "anchor" else (target, None)
        for feature in _columns(dataset, task, end, columns):
            name = _column_name(dataset, task, end, feature)
            into[name] = column_slicing(dataset, getattr(info, end), feature, rows)
    return Slicings(anchor, target)


def popularity_bands(count_N: np.ndarray) -> np.ndarray:
    """Head (0), torso (1) or tail (2) of each entity, by its share of the training pairs.

    Head are the most frequent ones that make up half of the pairs, torso those of the next 30%, tail all others and
    those without pairs: an entity is in the head if those more frequent than it hold less than half. Equally frequent
    ones stand together.

    Args:
        count_N: training pairs of each, at least one pair in all.
    """
    value, inverse, times = np.unique(count_N, return_inverse=True, return_counts=True)
    held = (value * times).astype(np.float64)
    above = held.sum() - np.cumsum(held)  # of those more frequent
    share_N = (above / held.sum())[inverse]
    return np.where(count_N == 0, 2, (share_N >= HEAD).astype(int) + (share_N >= TORSO))


def _popularity(count_N: np.ndarray, rows_B: np.ndarray | None = None) -> Slicing:
    band_N = popularity_bands(count_N)
    return Slicing(BANDS, band_N if rows_B is None else band_N[rows_B])


def _words(dataset: PreparedDataset, task: str, anchor_B: np.ndarray) -> Slicing | None:
    """Words of the anchors' first text; None where they have no text or are themselves of the catalogue."""
    info = dataset.manifest.tasks[task]
    texts = [name for name, about in dataset.manifest.entities[info.anchor].features.items() if about.kind == "text"]
    if not texts or info.anchor == info.candidate:
        return None
    column = f"{texts[0]}__text"
    text = dataset.read(dataset.entity_path(info.anchor), [column])[column].take(pa.array(anchor_B))
    words_B = pc.count_substring_regex(pc.fill_null(text, ""), r"\S+").to_numpy()
    return Slicing(("0", "1", "2", "3", "4+"), np.minimum(words_B, 4))


def column_slicing(dataset: PreparedDataset, entity: str, feature: str, rows: np.ndarray | None = None) -> Slicing:
    """Values of a category, or quarters of a number: of the entities in `rows`, or of all."""
    info = dataset.manifest.entities[entity]
    if info.features[feature].kind == "number":
        return _quarters(dataset, entity, feature, rows)
    labels, code_N = _vocabulary(dataset, entity, feature), category_rows(dataset, entity, feature, rows)
    return Slicing([*labels, MISSING], np.where(code_N < 0, len(labels), code_N))


def category_rows(dataset: PreparedDataset, entity: str, feature: str, rows: np.ndarray | None = None) -> np.ndarray:
    """Table row of the category of the entities in `rows` (or of all): 0 out of vocabulary, -1 without one."""
    rows = np.arange(dataset.manifest.entities[entity].count) if rows is None else rows
    bags = EntityStore.open(dataset, entity).bags(feature, rows)
    row_N = np.full(len(rows), -1, np.int64)
    row_N[bags.lengths_E > 0] = bags.values
    return row_N


def _vocabulary(dataset: PreparedDataset, entity: str, feature: str) -> list[str]:
    """Label of each table row; a value that is called as one of our own labels stands in quotes."""
    name = dataset.manifest.entities[entity].features[feature].table
    assert name is not None, "a category has a table"
    table = dataset.read(dataset.vocabulary_path(name), ["value", "row"])
    labels = np.full(dataset.manifest.tables[name], RARE, dtype=object)
    values = [f"'{value}'" if value in _OURS else value for value in table["value"].to_pylist()]
    labels[table["row"].to_numpy()] = values
    return list(labels)


def _quarters(dataset: PreparedDataset, entity: str, feature: str, rows: np.ndarray | None) -> Slicing:
    """A number's quarters over all entities, told in the numbers that the data gave (preparation standardised them)."""
    about = dataset.manifest.entities[entity].features[feature]
    value_N = dataset.read(dataset.entity_path(entity), [feature])[feature].to_numpy().astype(np.float64)
    edges = np.quantile(value_N, [0.25, 0.5, 0.75])
    code_N = np.searchsorted(edges, value_N)
    raw_N = value_N * about.std + about.mean
    declared: Any = dataset.manifest.declaration["entities"]
    if declared[entity]["features"][feature]["transform"] == "log1p":
        raw_N = np.expm1(raw_N)
    labels = []
    for quarter in range(4):
        inside = raw_N[code_N == quarter]
        labels.append(f"q{quarter + 1} ({_short(inside.min())} to {_short(inside.max())})" if len(inside) else "")
    return Slicing(labels, code_N if rows is None else code_N[rows])


def _short(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def lumped(slicing: Slicing, code: np.ndarray) -> Slicing:
    """The slicing with the ten labels that are most frequent in `code`, the others as one; labels not met left out."""
    count = np.bincount(code, minlength=len(slicing.labels))
    kept = np.flatnonzero(count)
    other = np.zeros(0, np.int64)
    if len(kept) > LARGEST + 1:
        kept = np.argsort(-count, kind="stable")
        kept, other = kept[:LARGEST], kept[LARGEST:]
    place = np.full(len(slicing.labels), -1)
    place[kept], place[other] = np.arange(len(kept)), len(kept)
    labels = [slicing.labels[number] for number in kept.tolist()] + ([OTHER] if len(other) else [])
    return Slicing(labels, place[slicing.code])


def target_parts(slicing: Slicing, relevant: Relevant) -> Iterator[tuple[str, np.ndarray]]:
    """Each label that a relevant item has, and which items have it (bool, of each relevant item)."""
    small = lumped(slicing, slicing.code[relevant.items])
    code = small.code[relevant.items]
    for number, label in enumerate(small.labels):
        yield label, code == number


def own_labels(slicing: Slicing, relevant: Relevant) -> np.ndarray:
    """Label of each anchor's relevant items, "(mixed)" where they have several; every anchor has an item."""
    code = slicing.code[relevant.items]
    if not len(code):
        return np.zeros(0, object)
    low_B, high_B = (ufunc.reduceat(code, relevant.offsets[:-1]) for ufunc in (np.minimum, np.maximum))
    return np.where(low_B == high_B, np.asarray(slicing.labels, object)[low_B], MIXED)
