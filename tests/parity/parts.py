"""The batch of a step in parts: ranks share the parts, and one rank takes them joined."""

from dataclasses import replace

import numpy as np

from tests.parity.signals import Signal
from tests.tiny import tiny_schema
from torchrec_mt.batch import Batch
from torchrec_mt.data.collate import Collator, TaskPairs
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.lanes import joined
from torchrec_mt.data.negatives import Sampler
from torchrec_mt.data.task_pairs import PairMaker
from torchrec_mt.training.agreement import pair_rules

PARTS = 4


class PartMaker:
    """Makes the parts of any step: every pair with what a signal wants to know of it."""

    def __init__(self, dataset: PreparedDataset, signal: Signal) -> None:
        names, rules = dataset.manifest.tasks, pair_rules(signal.losses, tiny_schema())
        self._rows = {name: dataset.pairs(name, "train") for name in names}
        self._sampler = Sampler(
            {name: signal.negatives.of(name) for name in names},
            {name: dataset.frequencies(name) for name in names},
            dataset.manifest.entities["product"].count,
            lanes=PARTS,
        )
        self._makers = {name: PairMaker(dataset, name, signal.negatives, rules[name], self._sampler) for name in rules}
        self._collator = Collator(dataset, id_dropout={("product", "product_id"): 0.3})

    def part(self, step: int, part: int) -> tuple[dict[str, TaskPairs], np.ndarray]:
        """Pairs and negatives of one part of a step's batch; the first holds far fewer distinct entities."""
        rng = np.random.default_rng([step, part])
        negatives = self._sampler.draw(rng) if part else self._sampler.draw(rng) % 8
        pairs = {}
        for name, maker in self._makers.items():
            rows = self._rows[name]
            chosen = rng.integers(0, len(rows["anchor"]) if part else 20, 10)
            weight_B = (0.5 + rng.random(10)).astype(np.float32)
            grade_B = rng.integers(1, 4, 10).astype(np.float32)
            pairs[name] = maker(rows["anchor"][chosen], rows["candidate"][chosen], weight_B, grade_B, negatives, rng)
        return pairs, negatives

    def batch(self, step: int, parts: range) -> Batch:
        """The joined batch of some parts."""
        made = [self.part(step, part) for part in parts]
        pairs = {name: joined([pairs[name] for pairs, _ in made]) for name in made[0][0]}
        negatives = np.concatenate([negatives for _, negatives in made])
        batch = self._collator(pairs, {"product": negatives}, dropout_key=step)
        return replace(batch, negatives={"product": replace(batch.negatives["product"], lanes=PARTS)})
