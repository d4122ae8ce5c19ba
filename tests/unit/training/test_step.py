"""One training step on one rank: one update of every table, what moves, and equality with plain PyTorch."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from tests.ranks import run_on_ranks
from tests.tiny import tiny_schema, write_tiny
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.data.negatives import InBatch, NegativesConfig, Uniform
from torchrec_mt.data.reader import Reader, ReaderConfig
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.two_tower import ModelConfig, TwoTower
from torchrec_mt.training.assemble import build_model, model_spec
from torchrec_mt.training.job import task_sides
from torchrec_mt.training.objective import Objective
from torchrec_mt.training.optim import OptimConfig, Optimizers
from torchrec_mt.training.schedule import CosineSchedule

MODEL = ModelConfig(dim=16, hidden=24, task_hidden=24)
OPTIM = OptimConfig(table_rate=0.1, dense_rate=0.01, schedule=CosineSchedule(warmup_steps=4))
WEIGHTS = {"find": 1.0, "alike": 0.5, "goes_with": 2.0}
LOSSES, NEGATIVES = LossConfig(precision="float32"), NegativesConfig(sources=(InBatch(), Uniform(count=8)))
SHARDINGS = {
    "auto": ShardingConfig(),
    "data_parallel": ShardingConfig(default="data_parallel"),
    "mixed": ShardingConfig(tables={"kind": "data_parallel"}),
}


def weights_of(model: DistributedModelParallel) -> dict[str, Tensor]:
    """By parameter, sharing memory with the model; of one rank, so a shard is the whole."""
    return {
        name: value.local_shards()[0].tensor if hasattr(value, "local_shards") else value
        for name, value in model.state_dict().items()
    }


def sharded_and_plain(folder: str, sharding: str) -> dict[str, object]:
    """Five steps of the sharded model with its optimizers, and of the plain module with Adagrad per row by hand."""
    warnings.simplefilter("error", UserWarning)
    quiet_dependencies()  # knows all that remains
    dataset, schema = PreparedDataset.open(folder), tiny_schema()
    here = Runtime(0, 1, torch.device("cpu"))
    model, _ = build_model(
        dataset.manifest,
        schema,
        MODEL,
        SHARDINGS[sharding],
        losses=LOSSES,
        runtime=here,
        seed=0,
        batch_rows=100,
        table_rate=OPTIM.table_rate,
    )
    plain = TwoTower(model_spec(dataset.manifest, schema, LOSSES), MODEL, device=here.device)
    state = weights_of(model)
    plain.load_state_dict({name: value.detach().clone() for name, value in state.items()})
    tables = {name: parameter for name, parameter in plain.named_parameters() if ".embedding_bags." in name}
    momentum = {name: torch.zeros(len(table)) for name, table in tables.items()}
    dense = torch.optim.Adam([p for name, p in plain.named_parameters() if name not in tables], lr=OPTIM.dense_rate)
    optimizers = Optimizers(OPTIM, model, 5)
    reader = Reader(ReaderConfig(batch_size=30), dataset, schema, negatives=NEGATIVES, seed=0, rank=0, world_size=1)
    batches = iter(reader)
    fast_objective, slow_objective = (
        Objective(task_sides(dataset.manifest, schema), LOSSES, NEGATIVES, here.device) for _ in range(2)
    )
    losses = []
    for step in range(5):
        batch = next(batches)
        optimizers.set_rate(step)
        optimizers.zero_grad()
        fast = fast_objective(model(batch), batch, step)
        sum(WEIGHTS[name] * loss for name, loss in fast.items()).backward()  # type: ignore[union-attr]
        optimizers.step()

        rate = min(1.0, (step + 1) / 4)
        dense.param_groups[0]["lr"] = OPTIM.dense_rate * rate
        plain.zero_grad()
        slow = slow_objective(plain(batch), batch, step)
        sum(WEIGHTS[name] * loss for name, loss in slow.items()).backward()  # type: ignore[union-attr]
        dense.step()
        with torch.no_grad():
            for name, table in tables.items():
                assert table.grad is not None
                momentum[name] += table.grad.square().mean(dim=1)
                scale = momentum[name].sqrt() + 1e-8
                table -= OPTIM.table_rate * rate * table.grad / scale[:, None]
        losses.append([[fast[name].item(), slow[name].item()] for name in fast])
    drift = {name: (state[name] - value).abs().max().item() for name, value in plain.state_dict().items()}
    return {"losses": losses, "drift": drift}


@pytest.mark.parametrize("sharding", list(SHARDINGS))
def test_training_equals_plain_pytorch(tmp_path: Path, sharding: str) -> None:
    write_tiny(tmp_path / "data")
    [result] = run_on_ranks(1, sharded_and_plain, str(tmp_path / "data"), sharding)
    losses = np.array(result["losses"])
    np.testing.assert_allclose(losses[:, :, 0], losses[:, :, 1], rtol=1e-5)
    assert max(result["drift"].values()) < 1e-5, result["drift"]


@pytest.mark.parametrize("sharding", ["auto", "data_parallel"])
def test_rate_zero_leaves_tables_alone_and_the_schedule_reaches_them(tmp_path: Path, sharding: str) -> None:
    write_tiny(tmp_path / "data")
    [moved] = run_on_ranks(1, moved_by_rates, str(tmp_path / "data"), sharding)
    assert moved[0] == 0.0
    assert moved[2] == pytest.approx(moved[1] / 2, rel=1e-3)


def moved_by_rates(folder: str, sharding: str) -> list[float]:
    """How far the first step moves the tables at rates of 0, 1 and 1/2 (Adagrad's first step is sign times rate)."""
    dataset, schema = PreparedDataset.open(folder), tiny_schema()
    moved = []
    for factor in (0.0, 1.0, 0.5):
        model, _ = build_model(
            dataset.manifest,
            schema,
            MODEL,
            SHARDINGS[sharding],
            losses=LOSSES,
            runtime=Runtime(0, 1, torch.device("cpu")),
            seed=0,
            batch_rows=100,
            table_rate=0.1,
        )
        optimizers = Optimizers(OptimConfig(table_rate=0.1 * factor, schedule=CosineSchedule(warmup_steps=1)), model, 5)
        tables = [value for name, value in weights_of(model).items() if ".embedding_bags." in name]
        before = [table.clone() for table in tables]
        config = ReaderConfig(batch_size=30, prefetch=0)
        reader = Reader(config, dataset, schema, negatives=NEGATIVES, seed=0, rank=0, world_size=1)
        batch = next(iter(reader))
        optimizers.set_rate(0)
        objective = Objective(task_sides(dataset.manifest, schema), LOSSES, NEGATIVES, torch.device("cpu"))
        loss = objective(model(batch), batch, 0)
        torch.stack(list(loss.values())).sum().backward()
        optimizers.step()
        moved.append(sum((a - b).abs().sum().item() for a, b in zip(before, tables, strict=True)))
    return moved
