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
from torchrec_mt.training.checkpoint import load_model
from torchrec_mt.training.ema import EmaConfig, MovingAverage


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


def test_a_state_goes_on_where_it_was() -> None:
    first, second = (nn.Parameter(torch.tensor([1.0])) for _ in range(2))
    one, other = (MovingAverage(EmaConfig(), {"w": weight}) for weight in (first, second))
    for weight in (first, second):
        with torch.no_grad():
            weight.fill_(3.0)
    one.update()
    other.load_state_dict(one.state_dict())
    one.update()
    other.update()
    assert torch.equal(one.state_dict()["averages"]["w"], other.state_dict()["averages"]["w"])
    with pytest.raises(ValueError, match=r"averages of other parameters: \['v', 'w'\]"):
        MovingAverage(EmaConfig(), {"v": first}).load_state_dict(one.state_dict())


def test_validations_and_saved_models_take_the_averages(
    dataset: PreparedDataset, here: Runtime, tmp_path: Path
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def look() -> dict[str, float]:
        seen.append({name: value.detach().clone() for name, value in trainer.model.named_parameters()})
        return {"find/recall@10": 0.5}

    optim = replace(OPTIM, ema=EmaConfig(decay=0.5))
    trainer = tiny_trainer(dataset, tmp_path, here, optim=optim, validate=look)
    trainer.run(tiny_batches(dataset), 4)
    trained = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    load_model(trainer.model, tmp_path / "model" / "last")
    saved = dict(trainer.model.named_parameters())
    for name, value in saved.items():
        assert torch.equal(value, seen[0][name]), f"{name}: judged one model, kept another"
        assert torch.equal(value, trained[name]) == is_table(name), f"{name}: averaged, or not"
    plain = tiny_trainer(dataset, tmp_path / "plain", here)
    plain.run(tiny_batches(dataset), 4)
    for name, value in plain.model.named_parameters():
        assert torch.equal(value, trained[name]), f"{name}: the average changed the training"
