"""Reader: each rank streams its lanes' row groups of every task's pairs and yields Batches, without end.

A task's pairs are passed over again and again (`data/pair_stream.py`). Lanes never run dry, so ranks agree on any
number of steps. The same (seed, lane, number of lanes) gives the same pairs and draws at the same step, whatever the
ranks (`data/lanes.py`) and whatever was read before: the position of a reader is the number of its step.
"""

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import Collator, TaskPairs
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.lanes import Lanes, cut, joined
from torchrec_mt.data.mined import MinedFolder
from torchrec_mt.data.mixing import Mixing, ProportionalMixing, batch_sizes
from torchrec_mt.data.negatives import Mined, NegativesConfig, Sampler
from torchrec_mt.data.pair_stream import PairFile, PairStream
from torchrec_mt.data.task_pairs import PairMaker, PairRules
from torchrec_mt.errors import UserError, within
from torchrec_mt.schema import IdFeature, Schema


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """How batches are made.

    Args:
        batch_size: pairs of all tasks per step and lane (rank, at the start of a run).
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


class Reader:
    """Yields Batches of the training split for one rank, without end.

    Args:
        dataset, schema: the prepared dataset and its declaration. negatives: what pairs are compared with.
        rules: per task, what its loss wants of its pairs (none: nothing special).
        seed: of everything drawn here.
        rank, world_size: whose part to read.
        lanes: in which a step's batch is read, whatever the number of ranks; fixed when a run starts. None: world_size.

    Raises:
        UserError: what the dataset cannot give; numbers of lanes and ranks of which neither divides the other.
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
        lanes: int | None = None,
    ) -> None:
        self._config, self._seed, self._step = config, seed, 0
        self._lanes = Lanes(lanes or world_size, rank, world_size)
        number, tasks = self._lanes.number, schema.trained_tasks
        _check_tasks(negatives, tasks)
        self._pairs = {name: dataset.manifest.tasks[name].pairs["train"] for name in tasks}
        self.batch_sizes = batch_sizes(config.mixing, self._pairs, config.batch_size)
        held = sum(self._pairs.values())
        if config.batch_size * number > held:
            raise UserError(
                f"reader.batch_size = {config.batch_size:,} on {number} rank(s) is more than the {held:,} training "
                "pairs of all tasks: make it smaller"
            )
        _check_sharers(self.batch_sizes, self._lanes)
        self._candidate_entity = {name: task.candidate for name, task in tasks.items()}
        self._files = {name: PairFile(dataset, name, number) for name in tasks}
        self._samplers = {
            entity: Sampler(
                {name: negatives.of(name) for name in tasks if tasks[name].candidate == entity},
                {name: dataset.frequencies(name) for name in tasks if tasks[name].candidate == entity},
                dataset.manifest.entities[entity].count,
                lanes=number,
            )
            for entity in dict.fromkeys(self._candidate_entity.values())
        }
        self._makers = {
            name: PairMaker(
                dataset, name, negatives, (rules or {}).get(name, PairRules()), self._samplers[task.candidate]
            )
            for name, task in tasks.items()
        }
        self._digest, self._mapped = dataset.manifest.digest, dataset.mapped()
        for name in tasks:
            for source in negatives.of(name):
                if isinstance(source, Mined):
                    self._mapped.add(MinedFolder.open(source.path).mapped(name))
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
        return batches_per_epoch(self._config, self._pairs, self._lanes.number)

    @property
    def pairs_per_step(self) -> int:
        """Most pairs of all tasks that a rank holds in a step, the same on every rank."""
        return sum(max(self._lanes.counts(size)) for size in self.batch_sizes.values())

    @property
    def draws_per_step(self) -> int:
        """Most negatives from catalogues that a rank holds in a step, the same on every rank."""
        return sum(max(self._lanes.counts(sampler.size)) for sampler in self._samplers.values())

    def state_dict(self) -> dict[str, int | str]:
        """Where this reader stands: after the batch handed out last (batches made ahead do not count).

        The same on every rank, and small: the step, and what else decides which batch comes at a step.
        """
        return {"step": self._step, **self._fixed()}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Stands where another reader stood: the next batch is the one that it would have handed out next.

        For iterators made from now on. Nothing that came before is read again.

        Raises:
            UserError: the state is of a reader of other batches, or says no step.
        """
        fixed, step = self._fixed(), state.get("step")
        differing = [
            f"{key} = {state.get(key, 'nothing')!r} there, {fixed.get(key, 'nothing')!r} here"
            for key in sorted({*fixed, *state} - {"step"})
            if state.get(key) != fixed.get(key)
        ]
        if differing:
            raise UserError(
                f"the reader's saved position is one among other batches ({'; '.join(differing)}): "
                "go on with the dataset and the config that it was saved with"
            )
        if type(step) is not int or step < 0:
            raise UserError(f"the reader's saved position has step = {step!r}: must be a whole number from 0 on")
        self._step = step

    def _fixed(self) -> dict[str, int | str]:
        """What decides, with the step, which pairs and draws come."""
        return {
            "seed": self._seed,
            "lanes": self._lanes.number,
            "shuffle_row_groups": self._config.shuffle_row_groups,
            "dataset": self._digest,
            **{f"batch_size/{name}": size for name, size in self.batch_sizes.items()},
            **{f"pairs/{name}": file.layout for name, file in self._files.items()},
            **{f"draws/{entity}": sampler.size for entity, sampler in self._samplers.items()},
        }

    def _streams(self, lane: int, step: int) -> dict[str, PairStream]:
        """The pairs of a lane by task, as they come from a step on."""
        return {
            name: PairStream(
                file,
                seed=[self._seed, number],
                lane=lane,
                window=self._config.shuffle_row_groups,
                taken=step * self.batch_sizes[name],
            )
            for number, (name, file) in enumerate(self._files.items())
        }

    def _lane(
        self, lane: int, step: int, streams: dict[str, PairStream]
    ) -> tuple[dict[str, TaskPairs], dict[str, np.ndarray]]:
        """Pairs by task and draws by candidate entity of one lane."""
        rng = np.random.default_rng([self._seed, 1 << 20, step, lane])
        negatives = {entity: sampler.draw(rng) for entity, sampler in self._samplers.items()}
        pairs = {
            name: self._makers[name](*stream.take(self.batch_sizes[name]), negatives[self._candidate_entity[name]], rng)
            for name, stream in streams.items()
        }
        return pairs, negatives

    def _batch(self, made: list[tuple[dict[str, TaskPairs], dict[str, np.ndarray]]], step: int) -> Batch:
        """This rank's part of what its lanes hold."""
        lanes, sizes = self._lanes, self.batch_sizes
        drawn = {entity: lanes.part(sampler.size) for entity, sampler in self._samplers.items()}
        pairs = {
            name: cut(joined([pairs[name] for pairs, _ in made]), lanes.part(size), drawn[self._candidate_entity[name]])
            for name, size in sizes.items()
        }
        negatives = {
            entity: np.concatenate([negatives[entity] for _, negatives in made])[part] for entity, part in drawn.items()
        }
        batch = self._collate(pairs, negatives, dropout_key=self._seed * 1_000_003 + step)
        return replace(
            batch,
            pairs={name: replace(one, counts=lanes.counts(sizes[name])) for name, one in batch.pairs.items()},
            negatives={
                entity: replace(one, lanes=lanes.number, counts=lanes.counts(self._samplers[entity].size))
                for entity, one in batch.negatives.items()
            },
        )

    def _batches(self, step: int) -> Generator[Batch]:
        streams = {lane: self._streams(lane, step) for lane in self._lanes.mine}
        while True:
            self._mapped.check()
            yield self._batch([self._lane(lane, step, own) for lane, own in streams.items()], step)
            step += 1

    def __iter__(self) -> Generator[Batch]:
        step, prefetch = self._step, self._config.prefetch
        source = self._batches(step)
        with closing(prefetched(source, prefetch) if prefetch else source) as batches:
            for batch in batches:
                step += 1
                self._step = step
                yield batch


def batches_per_epoch(config: ReaderConfig, pairs: Mapping[str, int], lanes: int) -> int:
    """Batches of all lanes until as many pairs of all tasks have passed as there are.

    Args:
        pairs: training pairs of each task.
    """
    return -(-sum(pairs.values()) // (config.batch_size * lanes))


def _check_tasks(negatives: NegativesConfig, tasks: Mapping[str, object]) -> None:
    for name in negatives.tasks:
        if name not in tasks:
            raise UserError(f"negatives.tasks names '{name}', which is no trained task: {list(tasks)}")


def _check_sharers(batch_sizes: Mapping[str, int], lanes: Lanes) -> None:
    name, size = min(batch_sizes.items(), key=lambda item: item[1])
    if size < lanes.sharers:
        raise UserError(
            f"task '{name}' has {size} pair(s) of a lane's batch, too few for the {lanes.sharers} ranks that share it: "
            f"take at most {size * lanes.number} ranks"
        )


def prefetched(source: Iterator[Batch], depth: int) -> Generator[Batch]:
    """The same items, up to `depth` of them made ahead by one thread. Its errors are raised here; closing ends it."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        ahead = deque(pool.submit(next, source, None) for _ in range(depth))
        try:
            while (item := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(next, source, None))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)
