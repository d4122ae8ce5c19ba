"""Learning signals whose parity is tested: what tasks are compared with and which losses they learn by. Every source of
negatives, loss, mask, correction and kind of frequencies stands in one of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.tiny import PRODUCTS
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.mined import MinedTask, write_mined
from torchrec_mt.data.negatives import (
    InBatch,
    Memory,
    Mined,
    Named,
    NegativesConfig,
    Popularity,
    StreamingFrequencies,
    Uniform,
)
from torchrec_mt.models.losses.config import BceLoss, LossConfig, MarginLoss, SoftmaxLoss


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Negatives and losses."""

    negatives: NegativesConfig
    losses: LossConfig


def mine_at_random(dataset: PreparedDataset, path: Path) -> None:
    """A folder of mined negatives for every task: 0 to 4 products of each anchor."""
    rng, mined = np.random.default_rng(7), {}
    for name, task in dataset.manifest.tasks.items():
        anchors = dataset.manifest.entities[task.anchor].count
        chosen = [np.sort(rng.choice(PRODUCTS, anchor % 5, replace=False)) for anchor in range(anchors)]
        mined[name] = MinedTask(np.array([len(ids) for ids in chosen]), np.concatenate(chosen))
    write_mined(path, dataset, mined, {})


def signals(folder: Path) -> dict[str, Signal]:
    """The signals by name.

    Args:
        folder: of the test, with the mined negatives in `mined`.
    """
    mined, memory = str(folder / "mined"), Memory(size=100, max_age=3, warmup=3)
    return {
        "usual": Signal(
            negatives=NegativesConfig(
                sources=(InBatch(), Uniform(count=12), Popularity(count=6), memory),
                tasks={"find": (InBatch(), Uniform(count=8), Named(count=2))},
            ),
            losses=LossConfig(
                tasks={"alike": SoftmaxLoss(symmetric=True, label_smoothing=0.1), "goes_with": BceLoss()},
                precision="float32",
            ),
        ),
        # Few buckets: other candidates share them.
        "standard": Signal(
            negatives=NegativesConfig(
                sources=(InBatch(), Uniform(count=8), Popularity(count=6), memory),
                tasks={
                    "find": (InBatch(), Uniform(count=8), Mined(path=mined, count=2)),
                    "goes_with": (Uniform(count=12), Mined(path=mined, count=3)),
                },
                logq="standard",
                frequencies=StreamingFrequencies(buckets=64),
                mask="own",
            ),
            losses=LossConfig(
                tasks={
                    "find": SoftmaxLoss(grades="exponential"),
                    "alike": SoftmaxLoss(symmetric=True),
                    "goes_with": MarginLoss(),
                },
                precision="float32",
            ),
        ),
        "uncorrected": Signal(
            negatives=NegativesConfig(
                sources=(InBatch(), Popularity(count=6), memory),
                tasks={"find": (InBatch(), Uniform(count=8), Named(count=1), Mined(path=mined, count=2))},
                logq="off",
                mask="none",
            ),
            losses=LossConfig(
                tasks={
                    "find": SoftmaxLoss(grades="linear", label_smoothing=0.1),
                    "alike": MarginLoss(margin=0.5),
                    "goes_with": BceLoss(),
                },
                precision="float32",
            ),
        ),
    }
