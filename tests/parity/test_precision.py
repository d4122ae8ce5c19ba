"""Half the bits train almost the same: bfloat16 towers, float16 tables, float16 between ranks.

The losses of five steps were off by 5e-4 (towers), 1.7e-4 (tables) and 1e-4 (communication), relatively; three times as
much is allowed.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_on_ranks
from tests.tiny import write_tiny
from tests.tiny_trainer import MODEL, tiny_batches, tiny_trainer
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed.planning import CommunicationConfig, ShardingConfig, make_sharder
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.sharding import table_kernels
from torchrec_mt.errors import UserError
from torchrec_mt.models.two_tower import TwoTower

STEPS = 5
SHARDING = ShardingConfig(default="row_wise", tables={"product_id": "table_wise"})
FLOAT16 = CommunicationConfig(forward="float16", backward="float16")


def train(path: str, how: str) -> dict[str, object]:
    """Losses of some steps, which dtypes were at work, and whether a step in slices gives the same."""
    here = Runtime(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    dataset = PreparedDataset.open(Path(path))
    trainer = tiny_trainer(
        dataset,
        Path("unused"),
        here,
        sharding=replace(SHARDING, communication=FLOAT16) if how == "communication" else SHARDING,
        model_config=replace(
            MODEL,
            precision="bfloat16" if "towers" in how else "float32",
            rows_at_once=7 if how == "towers in slices" else 0,
        ),
        table_dtype="float16" if how == "tables" else "float32",
    )
    products: set[str] = set()
    two_tower = next(module for module in trainer.model.modules() if isinstance(module, TwoTower))
    for module in two_tower.towers.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, given, product: products.add(str(product.dtype)))
    batches = tiny_batches(dataset, rank=here.rank, world_size=here.world_size)
    losses = [list(trainer.steps.train_step(next(batches), step).values()) for step in range(STEPS)]
    vectors = two_tower.anchors(torch.randn(3, MODEL.dim), "find")
    return {
        "losses": losses,
        "products": sorted(products),
        "tables": sorted(
            {str(weight.dtype) for k in table_kernels(trainer.model) for weight in k.split_embedding_weights()}
        ),
        "vectors": str(vectors.dtype),
        "dense": sorted({str(p.dtype) for p in two_tower.towers.parameters()}),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("precision") / "data"
    write_tiny(folder)
    return str(folder)


@pytest.fixture(scope="module")
def exact(data: str) -> dict[str, object]:
    return run_on_ranks(2, train, data, "float32")[0]


@pytest.mark.parametrize(
    ("how", "tolerance", "products", "tables"),
    [
        ("towers", 0.0015, "torch.bfloat16", "torch.float32"),
        ("towers in slices", 0.0015, "torch.bfloat16", "torch.float32"),
        ("tables", 0.0005, "torch.float32", "torch.float16"),
        ("communication", 0.0003, "torch.float32", "torch.float32"),
    ],
)
def test_half_the_bits_train_almost_the_same(
    data: str, exact: dict[str, object], how: str, tolerance: float, products: str, tables: str
) -> None:
    found, other = run_on_ranks(2, train, data, how)
    assert (found["products"], found["tables"]) == ([products], [tables])
    assert (found["vectors"], found["dense"]) == ("torch.float32", ["torch.float32"])
    losses, wanted = torch.tensor(found["losses"]), torch.tensor(exact["losses"])
    off = ((losses - wanted) / wanted).abs()
    assert 0 < off.max() < tolerance, f"{how}: off by {off.max():.2g}"
    assert found["losses"] == other["losses"]


def test_what_is_not_possible_is_refused(data: str) -> None:
    with pytest.raises(UserError, match=r'sharding.communication.backward = "bfloat16": between CPUs'):
        make_sharder(CommunicationConfig(backward="bfloat16"), torch.device("cpu"))
    here = Runtime(0, 1, torch.device("cpu"))
    with pytest.raises(UserError, match=r'dataset.tables.kind.dtype = "float16", but replicated tables are float32'):
        tiny_trainer(
            PreparedDataset.open(Path(data)),
            Path("unused"),
            here,
            sharding=ShardingConfig(tables={"kind": "data_parallel"}),
            table_dtype="float16",
        )
