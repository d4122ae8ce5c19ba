"""Entities, features, tables and tasks: the one vocabulary of data and model.

A dataset is *declared* here (in TOML) and nowhere else: no other module knows the name of an entity, a feature or a
task. `data/` turns raw tables into a prepared dataset by this declaration, `models/` builds tables and towers from it.
This module imports neither torch nor any other room.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from torchrec_mt.errors import at_most, require

OOV_ROW = 0
"""Row 0 of every embedding table stands for every id or value that is rare, unseen or dropped out."""


TABLE_PREFIX = "table_"
"""What a table's name begins with inside modules: torch's own attributes ("items", "type") are names there already."""

_OWN = "@"
"""In no name of a dataset."""


def own_table(table: str, task: str) -> str:
    """The name of a task's own copy of a table."""
    return f"{table}{_OWN}{task}"


def declared_table(name: str) -> str:
    """The dataset's table that a table of the model is, or is a task's own copy of."""
    return name.partition(_OWN)[0]


@dataclass(frozen=True, kw_only=True)
class Table:
    """An embedding table, shared by every feature that names it. Rows: 1 out-of-vocabulary row, then values by count.

    Args:
        dim: width of a row; on CPU a multiple of 4.
        max_rows: rows at most, the out-of-vocabulary row included; the most frequent values win.
        min_count: a value seen less often than this gets no row of its own.
        dtype: of the rows. In float16 a table takes half the memory; what is looked up is float32 either way.
    """

    dim: int = 64
    max_rows: int = 1_000_000
    min_count: int = 1
    dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        at_most(self, dim=65_536, max_rows=2**31 - 1, min_count=1_000_000_000)


@dataclass(frozen=True, kw_only=True)
class IdFeature:
    """The entity's own id, counted in training pairs (so unseen entities fall to the out-of-vocabulary row).

    Args:
        dropout: share of lookups replaced by the out-of-vocabulary row in training, so that it learns to stand in for
            entities never seen; deterministic per (seed, step, entity).
    """

    kind: Literal["id"]
    table: str
    dropout: float = 0.1

    def __post_init__(self) -> None:
        at_most(self, dropout=1)


@dataclass(frozen=True, kw_only=True)
class CategoryFeature:
    """One value per entity. Null or empty means no lookup (a zero vector)."""

    kind: Literal["category"]
    column: str
    table: str


@dataclass(frozen=True, kw_only=True)
class CategoriesFeature:
    """Several values per entity: a list column, or a string column split at `separator`."""

    kind: Literal["categories"]
    column: str
    table: str
    separator: str | None = None
    max_values: int = 64

    def __post_init__(self) -> None:
        at_most(self, max_values=1_000_000)


@dataclass(frozen=True, kw_only=True)
class TextFeature:
    """A bag of words and character n-grams of one or more string columns.

    Args:
        columns: string columns, joined by a blank.
        stem: Snowball language for stemming the words, or "none".
        char_ngrams: lengths of character n-grams taken inside each word (marked `<word>` at its ends); () for none.
        max_tokens: longest bag; longer texts keep their first tokens and are counted in the manifest.
        weights: "uniform", or "idf" (weighted bags: log(1 + n / df), scaled to mean 1 over the vocabulary).
    """

    kind: Literal["text"]
    columns: tuple[str, ...]
    table: str
    stem: str = "english"
    char_ngrams: tuple[int, ...] = (3, 4)
    max_tokens: int = 512
    weights: Literal["uniform", "idf"] = "uniform"

    def __post_init__(self) -> None:
        at_most(self, max_tokens=1_000_000)
        require(max(self.char_ngrams, default=0) <= 64, "char_ngrams", self.char_ngrams, "lengths of at most 64")


@dataclass(frozen=True, kw_only=True)
class NumberFeature:
    """A number, standardised over the entities (mean 0, deviation 1); null becomes the mean.

    NaN and infinity are errors. "log1p" needs values > -1.
    """

    kind: Literal["number"]
    column: str
    transform: Literal["none", "log1p"] = "none"


@dataclass(frozen=True, kw_only=True)
class VectorFeature:
    """A dense vector made elsewhere (a list-of-float column of exactly `dim` numbers); null becomes zeros."""

    kind: Literal["vector"]
    column: str
    dim: int

    def __post_init__(self) -> None:
        at_most(self, dim=65_536)


SparseFeature = IdFeature | CategoryFeature | CategoriesFeature | TextFeature
DenseFeature = NumberFeature | VectorFeature
Feature = SparseFeature | DenseFeature


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A thing with an id and features.

    Args:
        path: Parquet or CSV file, glob or folder, relative to the source's folder (or absolute, or a URL).
        id: the id column; unique, never null.
    """

    path: str
    id: str
    features: dict[str, Feature] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GivenPairs:
    """Pairs named by the data: clicks after a search, judgements with grades. Repeated rows are one pair with a count.

    Args:
        anchor, candidate: id columns.
        weight: column of loss weights >= 0 (summed over repeats); none means 1 per pair.
        grade: column of relevance grades >= 0; pairs below `min_grade` are left out; NDCG uses it as gain. Pairs of
            grade 0 that are kept are judged irrelevant: they are never trained and make their split a judged pool.
        label: column of labels (strings or integers), in place of `grade`; roles: what each label says of its pair in
            this task. A number > 0 is the grade of a positive pair; "negative" makes the candidate a named negative of
            the anchor; "ignore": never trained, never a negative. Other labels' pairs are left out.
        negatives: list column of candidate ids that were shown and not chosen with the row; null or empty: none. Only
            the training part's rows count, and nothing positive or ignored there becomes a negative of the anchor.
        time: column to split by time with; group: column(s) to split by hash with. Both may be missing where the task
            is only evaluated (`trained_as`): all its pairs are tested then.
    """

    kind: Literal["given"]
    path: str
    anchor: str
    candidate: str
    weight: str | None = None
    grade: str | None = None
    min_grade: float = 1.0
    label: str | None = None
    roles: dict[str, float | Literal["negative", "ignore"]] = field(default_factory=dict)
    negatives: str | None = None
    time: str | None = None
    group: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_most(self, min_grade=1e6)
        huge = [grade for grade in self.roles.values() if not isinstance(grade, str) and 1e6 < grade < math.inf]
        require(not huge, "roles", self.roles, "grades of at most 1e6")

    @property
    def names_negatives(self) -> bool:
        """Whether some rows name negatives of their anchor."""
        return self.negatives is not None or "negative" in self.roles.values()


@dataclass(frozen=True, kw_only=True)
class GroupPairs:
    """Pairs derived from events: two items of one group (a basket, a session, a household's purchases of a type).

    An item counts once per group. A pair of a group of s items counts 1 / (s - 1), so that an item's counts sum to the
    number of its groups; lift is then count(a, b) * total / (count(a) * count(b)), which is 1 for unrelated items
    whatever the group sizes (plain lift is not: it is mostly basket size).

    Args:
        group: column(s) that make a group; item: id column of the entity (anchor and candidate are the same entity).
        time: column to split by time with. split_group: column(s) to split by hash with, where they are not the
            split's; without them a source that has none of the split's columns is split by its own `group`.
        order: column that orders a group's items (needed by "forward").
        direction: "both" gives (a, b) and (b, a); "forward" only (earlier, later).
        min_support: groups that hold the pair, at least. min_lift: size-adjusted lift, at least.
        max_group_size: larger groups are left out (and counted in the manifest).
        same, different: entity columns that the two items must share, or must not share.
        minus: tasks whose pairs (either direction) are taken away: complement = co-purchase - co-view (P-Companion).
    """

    kind: Literal["groups"]
    path: str
    group: tuple[str, ...]
    item: str
    time: str | None = None
    split_group: tuple[str, ...] = ()
    order: str | None = None
    direction: Literal["both", "forward"] = "both"
    min_support: int = 1
    min_lift: float = 0.0
    max_group_size: int = 50
    same: str | None = None
    different: str | None = None
    minus: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_most(self, min_support=1_000_000_000, max_group_size=1_000_000_000, min_lift=1e12)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a synthetic data set knows about itself: for each anchor the candidates by true preference (the oracle)."""

    path: str
    anchor: str
    candidate: str
    score: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """Find the candidates of an anchor.

    Args:
        anchor, candidate: entity names.
        pairs: where the pairs come from.
        weighting: loss weight of a pair: 1, its count, or log(1 + count); times `GivenPairs.weight` where there is one.
        trained_as: this task is only evaluated, with the anchor side of that other task (a second way to score it).
        truth: ranking known to the generator of the data; without it the oracle ranks the test pairs first.
    """

    anchor: str
    candidate: str
    pairs: GivenPairs | GroupPairs
    weighting: Literal["uniform", "count", "log_count"] = "uniform"
    trained_as: str | None = None
    truth: Truth | None = None


SHARE = 0.1
"""Share of the events (or groups) that validation and test get each, if a split does not say."""


@dataclass(frozen=True, kw_only=True)
class TimeSplit:
    """Train before `valid_from`, validate before `test_from`, test after.

    Give both moments (as ISO strings or numbers, in the time column's own type), or the shares of events that fall into
    each part (0.1 if not given; the moments are then quantiles over the events of all tasks).
    """

    kind: Literal["time"]
    valid_from: str | float | None = None
    test_from: str | float | None = None
    valid_share: float | None = None
    test_share: float | None = None

    def __post_init__(self) -> None:
        at_most(self, valid_share=1, test_share=1)
        for key in ("valid_from", "test_from"):
            moment = getattr(self, key)
            require(isinstance(moment, str | None) or abs(moment) <= 9.2e18, key, moment, "a 64-bit time")


@dataclass(frozen=True, kw_only=True)
class GroupSplit:
    """Split by a hash of the named column(s), present in every pair source: a group never lies on two sides."""

    kind: Literal["group"]
    column: tuple[str, ...]
    valid_share: float = SHARE
    test_share: float = SHARE
    salt: str = ""

    def __post_init__(self) -> None:
        at_most(self, valid_share=1, test_share=1)


def split_shares(split: TimeSplit | GroupSplit) -> tuple[float, float]:
    """Shares of validation and test."""
    valid, test = (SHARE if share is None else share for share in (split.valid_share, split.test_share))
    return valid, test


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Tables, entities and tasks of one dataset. `check_schema` says whether they fit together."""

    tables: dict[str, Table]
    entities: dict[str, Entity]
    tasks: dict[str, Task]
    split: TimeSplit | GroupSplit
    max_rejected_share: float = 0.01
    """Share of a task's raw rows that may name unknown entities, or lack time or group, before preparation refuses."""

    @property
    def trained_tasks(self) -> dict[str, Task]:
        """Tasks with an anchor side of their own, in declared order."""
        return {name: task for name, task in self.tasks.items() if task.trained_as is None}
