"""Reader: each rank streams its own row groups of every task's pairs and yields Batches, without end.

A task's pairs are passed over again and again, each pass in a new order: row groups are permuted, ranks take equal
stretches of them, a window of row groups is read at a time and its rows permuted. Ranks never run dry, so they agree on
any number of steps. The same (seed, rank, number of ranks) gives the same batches.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq

from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import Collator
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.mixing import Mixing, ProportionalMixing, batch_sizes
from torchrec_mt.data.negatives import NegativesConfig, Sampler
from torchrec_mt.data.task_pairs import PairMaker, PairRules
from torchrec_mt.errors import UserError, within
from torchrec_mt.schema import IdFeature, Schema


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """How batches are made.

    Args:
        batch_size: pairs of all tasks per rank and step.
        mixing: pairs per task in a batch.
        shuffle_row_groups: row groups of a task held at a time and shuffled together.
        prefetch: batches prepared ahead while the current one trains; 0 prepares them in place.
    """

    batch_size: int = 1024
    mixing: Mixing = field(default_factory=ProportionalMixing)
    shuffle_row_groups: int = 16
    prefetch: int = 2

    def __post_init__(self) -> None:
        within(self, 1, 1 << 24, "batch_size")
        within(self, 1, 1_000_000, "shuffle_row_groups")
        within(self, 0, 1_000, "prefetch")


_COLUMNS = ("anchor", "candidate", "weight", "grade")


class PairStream:
    """An endless stream of one task's training pairs for one rank."""

    def __init__(
        self, dataset: PreparedDataset, task: str, *, seed: list[int], rank: int, world_size: int, window: int
    ) -> None:
        self._dataset, self._path = dataset, dataset.pairs_path(task, "train")
        with dataset.reading(self._path):
            self._file = pq.ParquetFile(self._path, memory_map=True)
        if self._file.metadata.num_rows < world_size:
            raise UserError(f"task '{task}' has {self._file.metadata.num_rows} training pairs for {world_size} ranks")
        metadata = self._file.metadata
        self._group_rows = np.array([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
        self._seed, self._rank, self._world_size, self._window = seed, rank, world_size, window
        self._blocks = self._all_passes()
        self._rows: np.ndarray = np.zeros((0, len(_COLUMNS)))

    def _all_passes(self) -> Iterator[np.ndarray]:
        number = 0
        while True:
            yield from self._one_pass(number)
            number += 1

    def _one_pass(self, number: int) -> Iterator[np.ndarray]:
        """This rank's part of a pass: the pairs stand in one order for all ranks, and each takes its stretch of it.

        All parts are equally long, so all ranks pass on together; what does not divide (fewer pairs than ranks, others
        every time) is left out of the pass.
        """
        rng = np.random.default_rng([*self._seed, number])
        order = rng.permutation(len(self._group_rows))
        ends = np.cumsum(self._group_rows[order])
        share = int(ends[-1]) // self._world_size
        start = (int(rng.integers(ends[-1])) + self._rank * share) % int(ends[-1])
        stretches = _stretches(ends, start, share)
        own = np.random.default_rng([*self._seed, number, self._rank + 1])
        for first in range(0, len(stretches), self._window):
            rows = np.concatenate(
                [self._read(int(order[at]), low, high) for at, low, high in stretches[first : first + self._window]]
            )
            yield rows[own.permutation(len(rows))]

    def _read(self, group: int, low: int, high: int) -> np.ndarray:
        """Rows [low, high) of a row group."""
        with self._dataset.reading(self._path):
            table = self._file.read_row_group(group, columns=list(_COLUMNS)).slice(low, high - low)
        return np.stack([table[name].to_numpy().astype(np.float64) for name in _COLUMNS], axis=1)

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The next pairs: anchor_B, candidate_B (int64), weight_B, grade_B (float32)."""
        parts = []
        while count > 0:
            if len(self._rows) == 0:
                self._rows = next(self._blocks)
            parts.append(self._rows[:count])
            self._rows = self._rows[count:]
            count -= len(parts[-1])
        anchor_B, candidate_B, weight_B, grade_B = np.concatenate(parts).T
        ids = anchor_B.astype(np.int64), candidate_B.astype(np.int64)
        return *ids, weight_B.astype(np.float32), grade_B.astype(np.float32)


def _stretches(ends: np.ndarray, start: int, length: int) -> list[tuple[int, int, int]]:
    """Which rows of which row groups, (position, low, high), make `length` rows from row `start` on, round the end.

    Args:
        ends: running number of rows at the end of each group.
    """
    total = int(ends[-1])
    found = []
    for low, high in ((start, min(start + length, total)), (0, max(0, start + length - total))):
        first, last = np.searchsorted(ends, [low, high - 1], side="right") if high > low else (0, -1)
        for at in range(first, last + 1):
            begin = int(ends[at - 1]) if at else 0
            found.append((at, max(low, begin) - begin, min(high, int(ends[at])) - begin))
    return found


class Reader:
    """Yields Batches of the training split for one rank, without end.

    Args:
        dataset, schema: the prepared dataset and its declaration. negatives: what pairs are compared with.
        rules: per task, what its loss wants of its pairs (none: nothing special).
        seed: of everything drawn here.
        rank, world_size: whose part to read.
    """

    def __init__(
        self,
        config: ReaderConfig,
        dataset: PreparedDataset,
        schema: Schema,
        *,
        negatives: NegativesConfig,
        rules: Mapping[str, PairRules] | None = None,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._config, self._seed, self._rank, self._world_size = config, seed, rank, world_size
        tasks = schema.trained_tasks
        _check_tasks(negatives, tasks)
        self._pairs = {name: dataset.manifest.tasks[name].pairs["train"] for name in tasks}
        self.batch_sizes = batch_sizes(config.mixing, self._pairs, config.batch_size)
        held = sum(self._pairs.values())
        if config.batch_size * world_size > held:
            raise UserError(
                f"reader.batch_size = {config.batch_size:,} on {world_size} rank(s) is more than the {held:,} training "
                "pairs of all tasks: make it smaller"
            )
        self._candidate_entity = {name: task.candidate for name, task in tasks.items()}
        self._streams = {
            name: PairStream(
                dataset, name, seed=[seed, number], rank=rank, world_size=world_size, window=config.shuffle_row_groups
            )
            for number, name in enumerate(tasks)
        }
        self._samplers = {
            entity: Sampler(
                {name: negatives.of(name) for name in tasks if tasks[name].candidate == entity},
                {name: dataset.frequencies(name) for name in tasks if tasks[name].candidate == entity},
                dataset.manifest.entities[entity].count,
            )
            for entity in dict.fromkeys(self._candidate_entity.values())
        }
        self._makers = {
            name: PairMaker(
                dataset, name, negatives, (rules or {}).get(name, PairRules()), self._samplers[task.candidate]
            )
            for name, task in tasks.items()
        }
        self._collate = Collator(
            dataset,
            id_dropout={
                (entity, name): feature.dropout
                for entity, declared in schema.entities.items()
                for name, feature in declared.features.items()
                if isinstance(feature, IdFeature)
            },
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps until as many pairs have passed, over all ranks and tasks, as the training split holds."""
        return -(-sum(self._pairs.values()) // (self._config.batch_size * self._world_size))

    @property
    def draws_per_step(self) -> int:
        """Negatives that this rank draws from catalogues in a step."""
        return sum(sampler.size for sampler in self._samplers.values())

    def _batches(self) -> Iterator[Batch]:
        step = 0
        while True:
            rng = np.random.default_rng([self._seed, 1 << 20, step, self._rank])
            negatives = {entity: sampler.draw(rng) for entity, sampler in self._samplers.items()}
            pairs = {
                name: self._makers[name](
                    *stream.take(self.batch_sizes[name]), negatives[self._candidate_entity[name]], rng
                )
                for name, stream in self._streams.items()
            }
            yield self._collate(pairs, negatives, dropout_key=self._seed * 1_000_003 + step)
            step += 1

    def __iter__(self) -> Iterator[Batch]:
        if self._config.prefetch == 0:
            return self._batches()
        return prefetched(self._batches(), self._config.prefetch)


def _check_tasks(negatives: NegativesConfig, tasks: Mapping[str, object]) -> None:
    for name in negatives.tasks:
        if name not in tasks:
            raise UserError(f"negatives.tasks names '{name}', which is no trained task: {list(tasks)}")


def prefetched(source: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """The same items, up to `depth` of them made ahead by one thread. Its errors are raised here; closing ends it."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        ahead = deque(pool.submit(next, source, None) for _ in range(depth))
        try:
            while (item := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(next, source, None))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
