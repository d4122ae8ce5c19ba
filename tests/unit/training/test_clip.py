"""Gradient clipping: the length by hand, what is scaled, and what is logged."""

from pathlib import Path

import pytest
import torch

from tests.tiny_trainer import tiny_batches, tiny_trainer
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.sharding import is_table
from torchrec_mt.training.optim import OptimConfig

REPLICATED = ShardingConfig(tables={"kind": "data_parallel"})


def test_gradients_are_scaled_to_the_length(dataset: PreparedDataset, here: Runtime, tmp_path: Path) -> None:
    batch = next(tiny_batches(dataset))
    gradients = {}
    for clip_norm in (0.0, 0.01, 1e6):
        optim = OptimConfig(clip_norm=clip_norm)
        trainer = tiny_trainer(dataset, tmp_path, here, optim=optim, sharding=REPLICATED)
        trainer.steps.train_step(batch, 0)
        parts = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        assert {name.split(".")[-2] for name in parts if is_table(name)} == {"table_kind"}
        gradients[clip_norm] = torch.cat([gradient.flatten() for gradient in parts.values()])
        length = gradients[0.0].square().sum().sqrt().item()
        assert trainer.optimizers.gradient_norm is not None
        assert trainer.optimizers.gradient_norm.item() == pytest.approx(length, rel=1e-5), "before clipping"
    torch.testing.assert_close(gradients[0.01], gradients[0.0] * 0.01 / length, rtol=1e-4, atol=0)
    assert torch.equal(gradients[1e6], gradients[0.0]), "short ones are left alone"


def test_the_length_is_logged(dataset: PreparedDataset, here: Runtime, tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []
    trainer = tiny_trainer(dataset, tmp_path, here, log=lambda step, kind, values: logged.append(values))
    trainer.run(tiny_batches(dataset), 2)
    norms = [values["gradient_norm"] for values in logged if "gradient_norm" in values]
    assert len(norms) == 2
    assert min(norms) > 0
