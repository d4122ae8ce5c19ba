"""Every table has exactly one optimizer, or training does not start; replicated and sharded ones move alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from tests.ranks import run_on_ranks
from tests.tiny import tiny_schema, write_tiny
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.planning import ShardingConfig, describe_plan
from torchrec_mt.distributed.plans.job import make_plan
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.sharding import fuse_table_optimizer, replicated_tables, shard
from torchrec_mt.models.embeddings import embedding_collection
from torchrec_mt.models.losses.config import LossConfig
from torchrec_mt.models.spec import TableSpec
from torchrec_mt.models.two_tower import ModelConfig
from torchrec_mt.training.assemble import build_model
from torchrec_mt.training.optim import OptimConfig, Optimizers
from torchrec_mt.training.schedule import CosineSchedule

SHARDING = ShardingConfig(default="row_wise", tables={"kind": "data_parallel"})
TABLES = "embeddings.collection.embedding_bags"


def who_updates_what(folder: str) -> dict[str, object]:
    """Parameters by optimizer, the plan, and the guard's word on plans that do not fit the model."""
    dataset = PreparedDataset.open(folder)
    model, _ = build_model(
        dataset.manifest,
        tiny_schema(),
        ModelConfig(dim=16, hidden=24, task_hidden=24),
        SHARDING,
        losses=LossConfig(),
        runtime=Runtime(0, 1, torch.device("cpu")),
        seed=0,
        batch_rows=100,
        table_rate=0.1,
    )
    optimizers = {name: list(o.params) for name, o in Optimizers(OptimConfig(), model, 5).combined.optimizers}
    described, tables, refused = describe_plan(model.plan), model.plan.plan["embeddings.collection"], []
    for change in ({"table_kind": "row_wise"}, {"table_tokens": "data_parallel"}, {"table_nobody": "row_wise"}):
        [(name, kind)] = change.items()
        before = tables.get(name)
        tables[name] = type(tables["table_kind"])(sharding_type=kind, compute_kernel="fused")
        with pytest.raises(ValueError, match="tables") as error:
            replicated_tables(model)
        refused.append(str(error.value))
        if before is None:
            del tables[name]
        else:
            tables[name] = before
    return {
        "all": [name for name, _ in model.named_parameters()],
        "optimizers": optimizers,
        "plan": described,
        "refused": refused,
    }


def test_every_parameter_has_one_optimizer(tmp_path: Path) -> None:
    write_tiny(tmp_path / "data")
    [result] = run_on_ranks(1, who_updates_what, str(tmp_path / "data"))
    optimizers = result["optimizers"]
    assert sorted(name for names in optimizers.values() for name in names) == sorted(result["all"])
    assert optimizers["replicated"] == [f"{TABLES}.table_kind.weight"]
    assert sorted(optimizers["tables"]) == [f"{TABLES}.table_product_id.weight", f"{TABLES}.table_tokens.weight"]
    assert result["plan"]["embeddings.collection.kind"] == {
        "sharding_type": "data_parallel",
        "compute_kernel": "dense",
        "ranks": [0],
        "shards": [],
    }
    orphan, twice, unknown = result["refused"]
    assert f"no optimizer would update, or two would: ['{TABLES}.table_kind.weight']" in orphan
    assert f"no optimizer would update, or two would: ['{TABLES}.table_tokens.weight']" in twice
    assert f"differ: ['{TABLES}.table_nobody.weight']" in unknown


class OneTable(nn.Module):
    """Six rows of width 4; the loss weighs each bag by hand, so gradients of any size can be had."""

    def __init__(self) -> None:
        super().__init__()
        self.collection = embedding_collection([TableSpec(name="t", rows=6, dim=4, keys=("k",))], torch.device("meta"))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: KeyedJaggedTensor, weight_BD: Tensor) -> Tensor:
        return self.scale * (self.collection(features).to_dict()["k"] * weight_BD).sum()


def five_updates(kind: str) -> list[list[list[float]]]:
    """The table after each of five steps. Rows 0 to 3 get gradients of about 1, 1e-4, 1e-8 and 0; 4 is never read; 5
    is read by three bags at once."""
    device, module = torch.device("cpu"), OneTable()
    fuse_table_optimizer(module.collection, 0.1)
    plan, _ = make_plan(
        module, ShardingConfig(default=kind), pooling_factors={"t": [1.0]}, batch_size=6, device_type="cpu"
    )
    model = shard(module, plan, device)
    table = model.state_dict()["collection.embedding_bags.table_t.weight"]
    table = table.local_shards()[0].tensor if hasattr(table, "local_shards") else table
    table.copy_(torch.arange(24.0).view(6, 4) / 24)
    optimizers = Optimizers(OptimConfig(table_rate=0.1, schedule=CosineSchedule(warmup_steps=2)), model, 5)
    features = KeyedJaggedTensor(
        keys=["k"],
        values=torch.tensor([0, 1, 2, 3, 5, 5, 5, 5]),
        lengths=torch.tensor([1, 1, 1, 1, 2, 1, 1]),
        weights=torch.tensor([1.0, 1.0, 1.0, 1.0, 0.3, 0.7, 0.5, 2.0]),
    )
    size_B1 = torch.tensor([1.0, 1e-4, 1e-8, 0.0, 0.1, 0.1, 0.1])[:, None]
    generator, tables = torch.Generator().manual_seed(0), []
    for step in range(5):
        optimizers.set_rate(step)
        optimizers.zero_grad()
        model(features, size_B1 * torch.randn(7, 4, generator=generator)).backward()
        optimizers.step()
        tables.append(table.tolist())
    return tables


def test_a_replicated_table_takes_the_fused_update() -> None:
    """To 1e-6 of the table's entries (below 2), also where the gradient is as small as Adagrad's epsilon."""
    [fused], [replicated] = (run_on_ranks(1, five_updates, kind) for kind in ("row_wise", "data_parallel"))
    np.testing.assert_allclose(replicated, fused, rtol=0, atol=1e-6)
    first, last = np.array(fused[0]), np.array(fused[-1])
    moved = np.abs(last - first).max(axis=1)
    assert (moved[[0, 1, 2, 5]] > 0.01).all()
    assert (moved[[3, 4]] == 0).all()
