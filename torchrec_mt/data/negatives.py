"""Where the negatives of a task come from, how the reader draws them, and how often each product is to be expected.

A product stands among the columns of an anchor because a source put it there: another pair of the batch, a draw from
the catalogue, a memory of past batches, or the anchor's own list. Each source knows how many copies of a product it is
expected to give; logQ is the logarithm of their sum (`training/objective.py` adds what ranks and memory give).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from torchrec_mt.errors import require, within


@dataclass(frozen=True, kw_only=True)
class InBatch:
    """The candidates of the task's other pairs, of all ranks, with gradient."""

    kind: Literal["in_batch"] = "in_batch"


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """`count` candidates per lane and step, drawn evenly; tasks of one candidate entity share them."""

    kind: Literal["uniform"] = "uniform"
    count: int = 1024

    def __post_init__(self) -> None:
        within(self, 1, 1 << 24, "count")


@dataclass(frozen=True, kw_only=True)
class Popularity:
    """`count` candidates per lane and step drawn by (training pairs of the task) ** power."""

    kind: Literal["popularity"] = "popularity"
    count: int = 256
    power: float = 0.75

    def __post_init__(self) -> None:
        within(self, 1, 1 << 24, "count")
        require(0 < self.power <= 2, "power", self.power, "above 0 and at most 2")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Candidates of past batches as they were then, without gradient (Wang et al., "Cross-Batch Negative Sampling").

    Args:
        size: vectors kept, of all ranks together. max_age: steps after which a vector is too stale. warmup: steps
            before the first use, since vectors move fast at the start.
    """

    kind: Literal["memory"] = "memory"
    size: int = 8192
    max_age: int = 50
    warmup: int = 100

    def __post_init__(self) -> None:
        within(self, 1, 1 << 28, "size")
        within(self, 1, 1_000_000_000, "max_age")
        within(self, 0, 1_000_000_000, "warmup")


@dataclass(frozen=True, kw_only=True)
class Named:
    """`count` of the negatives that the data names for the anchor (`pairs.negatives`, or roles of labels)."""

    kind: Literal["named"] = "named"
    count: int = 4

    def __post_init__(self) -> None:
        within(self, 1, 1 << 24, "count")


@dataclass(frozen=True, kw_only=True)
class Mined:
    """`count` of the anchor's hard negatives that `torchrec-mt mine` wrote into the folder `path`."""

    kind: Literal["mined"] = "mined"
    path: str
    count: int = 4

    def __post_init__(self) -> None:
        within(self, 1, 1 << 24, "count")


NegativeSource = InBatch | Uniform | Popularity | Memory | Named | Mined


@dataclass(frozen=True, kw_only=True)
class ManifestFrequencies:
    """How often a candidate comes in a batch: its share of the task's training pairs, counted by preparation."""

    kind: Literal["manifest"] = "manifest"


@dataclass(frozen=True, kw_only=True)
class StreamingFrequencies:
    """Estimated while training from the gaps between a candidate's appearances (Yi et al., RecSys 2019, algorithm 2).

    Args:
        buckets: of a hash table; hashes: tables, the largest gap of which counts (collisions only shorten gaps).
        rate: weight of the newest gap.
    """

    kind: Literal["streaming"] = "streaming"
    buckets: int = 1 << 20
    hashes: int = 2
    rate: float = 0.05

    def __post_init__(self) -> None:
        within(self, 1, 1 << 30, "buckets")
        within(self, 1, 16, "hashes")
        require(0 < self.rate <= 1, "rate", self.rate, "above 0 and at most 1")


Frequencies = ManifestFrequencies | StreamingFrequencies


@dataclass(frozen=True, kw_only=True)
class NegativesConfig:
    """What anchors are compared with.

    Args:
        sources: of tasks not named in `tasks`; each kind at most once.
        logq: "refined" takes logQ off the negatives, "standard" off the positive too, "off" corrects nothing.
        mask: "known" leaves out, by id, the anchor itself and every candidate known from training; "own" only copies of
            the pair's own candidate; "none" nothing but the pair's own place.
    """

    sources: tuple[NegativeSource, ...] = (InBatch(), Uniform())
    tasks: dict[str, tuple[NegativeSource, ...]] = field(default_factory=dict)
    logq: Literal["refined", "standard", "off"] = "refined"
    frequencies: Frequencies = field(default_factory=ManifestFrequencies)
    mask: Literal["known", "own", "none"] = "known"

    def __post_init__(self) -> None:
        for key, sources in [("sources", self.sources), *((f"tasks.{name}", own) for name, own in self.tasks.items())]:
            kinds = [source.kind for source in sources]
            require(len(kinds) > 0, key, sources, "at least one source of negatives")
            require(len(set(kinds)) == len(kinds), key, kinds, "distinct kinds")
        counted = isinstance(self.frequencies, ManifestFrequencies)
        require(counted or self.logq != "off", "frequencies", self.frequencies.kind, '"manifest" where logq is "off"')

    def of(self, task: str) -> tuple[NegativeSource, ...]:
        """The sources of a task."""
        return self.tasks.get(task, self.sources)


class Sampler:
    """Draws the shared negatives of one candidate entity: uniform ones first, then each task's by popularity.

    Args:
        sources: per task of the entity. count_N: per task, training pairs of every candidate.
        lanes: that draw in a step, each for itself.
    """

    def __init__(
        self,
        sources: dict[str, Sequence[NegativeSource]],
        count_N: dict[str, np.ndarray],
        catalogue: int,
        *,
        lanes: int = 1,
    ) -> None:
        self._catalogue, self._lanes = catalogue, lanes
        self._uniform = {
            task: source.count for task, own in sources.items() for source in own if isinstance(source, Uniform)
        }
        self._popular: dict[str, Popularity] = {
            task: source for task, own in sources.items() for source in own if isinstance(source, Popularity)
        }
        self._edges_N = {task: np.cumsum(count_N[task] ** source.power) for task, source in self._popular.items()}
        self.stretches: dict[str, tuple[tuple[int, int], ...]] = dict.fromkeys(sources, ())
        position = max(self._uniform.values(), default=0)
        for task, count in self._uniform.items():
            self.stretches[task] += ((0, count),)
        for task, source in self._popular.items():
            self.stretches[task] += ((position, position + source.count),)
            position += source.count
        self.size = position
        """Negatives drawn in a step and lane."""

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The negatives of one lane and step: id_M."""
        drawn = [rng.integers(0, self._catalogue, max(self._uniform.values(), default=0))]
        for task, source in self._popular.items():
            edges_N = self._edges_N[task]
            place = np.searchsorted(edges_N, rng.random(source.count) * edges_N[-1], side="right")
            drawn.append(np.minimum(place, self._catalogue - 1))
        return np.concatenate(drawn)

    def expected(self, task: str, id_M: np.ndarray) -> np.ndarray:
        """Copies of each id that the task's draws of all lanes are expected to hold: expected_M (float32)."""
        expected = np.full(len(id_M), self._uniform.get(task, 0) / self._catalogue)
        if task in self._popular:
            edges_N = self._edges_N[task]
            width_M = edges_N[id_M] - np.where(id_M > 0, edges_N[id_M - 1], 0.0)
            expected += self._popular[task].count * width_M / edges_N[-1]
        return self._lanes * expected.astype(np.float32)
