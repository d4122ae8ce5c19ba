"""Every loss, alone in a model: a parameter that only other losses read must not stop DDP."""

import math
from pathlib import Path

import pytest

from tests.tiny_trainer import tiny_batches, tiny_trainer
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.models.losses.config import BceLoss, Loss, LossConfig, MarginLoss, SoftmaxLoss


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("loss", [SoftmaxLoss(), SoftmaxLoss(label_smoothing=0.1), BceLoss(), MarginLoss()], ids=repr)
def test_it_trains(dataset: PreparedDataset, here: Runtime, tmp_path: Path, loss: Loss, precision: str) -> None:
    losses = LossConfig(default=loss, precision=precision)  # type: ignore[arg-type]
    trainer, batches = tiny_trainer(dataset, tmp_path, here, losses=losses), tiny_batches(dataset)
    found = [sum(trainer.steps.train_step(next(batches), step).values()) / 3 for step in range(20)]
    assert all(map(math.isfinite, found))
    assert sum(found[-5:]) < 0.95 * sum(found[:5])
    if not isinstance(loss, BceLoss):  # its sum of e^score over the catalogue is far from N where vectors are short
        assert 0.2 < found[0] < 3, "divided by its natural scale, an untrained model's loss is about 1"
