"""Moving averages of the dense weights: their numbers, and that validations and saved models take them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny_trainer import OPTIM, tiny_batches, tiny_trainer
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.sharding import is_table
from torchrec_mt.distributed.table_state import table_layout, table_state
from torchrec_mt.training.checkpoints.store import CheckpointStore
from torchrec_mt.training.early_stop import EarlyStop
from torchrec_mt.training.ema import EmaConfig, MovingAverage
from torchrec_mt.training.run_state import load_weights


def test_numbers_by_hand_and_the_weights_come_back() -> None:
    weight = nn.Parameter(torch.tensor([0.0, 11.0]))
    average = MovingAverage(EmaConfig(decay=0.2), {"w": weight})
    for value in (11.0, 5.0):  # decays of 2/11, then 0.2, since 3/12 is more
        with torch.no_grad():
            weight.fill_(value)
        average.update()
    with average.applied():
        assert weight.tolist() == pytest.approx([0.2 * 9 + 0.8 * 5, 0.2 * 11 + 0.8 * 5])
    assert weight.tolist() == [5.0, 5.0]


def test_averages_start_over() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage(EmaConfig(), {"w": weight})
    with torch.no_grad():
        weight.fill_(3.0)
    average.update()
    average.start_over()
    assert (average.updates, average.averages["w"].tolist()) == (0, [3.0])


def test_validations_and_saved_models_take_the_averages(
    dataset: PreparedDataset, here: Runtime, tmp_path: Path
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def look() -> dict[str, float]:
        seen.append({name: value.detach().clone() for name, value in trainer.model.named_parameters()})
        return {"find/recall@10": 0.5}

    class Kept:
        """Keeps a checkpoint as a run does."""

        def is_due(self, step: int) -> bool:
            return False

        def save(self, step: int, stop: EarlyStop, *, value: float | None = None, last: bool = False) -> None:
            averages = trainer.optimizers.average
            assert averages is not None
            tensors = {f"average.{name}": value for name, value in averages.averages.items()}
            numbers = {"step": step, "layout": table_layout(trainer.model, None), "average_updates": averages.updates}
            store.save(step, tensors | table_state(trainer.model, None), state=numbers, rank_state={}, marks=("last",))

        def before_update(self) -> None:
            return

    optim, store = replace(OPTIM, ema=EmaConfig(decay=0.5)), CheckpointStore(tmp_path / "checkpoints", keep=1)
    trainer = tiny_trainer(dataset, tmp_path, here, optim=optim, validate=look, keep=Kept())
    trainer.run(tiny_batches(dataset), 4)
    trained = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    load_weights(trainer.model, store, "last")
    saved = dict(trainer.model.named_parameters())
    for name, value in saved.items():
        assert torch.equal(value, seen[0][name]), f"{name}: judged one model, kept another"
        assert torch.equal(value, trained[name]) == is_table(name), f"{name}: averaged, or not"
    plain = tiny_trainer(dataset, tmp_path / "plain", here)
    plain.run(tiny_batches(dataset), 4)
    for name, value in plain.model.named_parameters():
        assert torch.equal(value, trained[name]), f"{name}: the average changed the training"
