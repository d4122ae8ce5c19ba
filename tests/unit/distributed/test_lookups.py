"""No lookup kernel computes a gradient of the bags' weights, however its tables are sharded: a fifth of a CPU step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    DenseTableBatchedEmbeddingBagsCodegen,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny_trainer import tiny_batches, tiny_trainer
from torchrec_mt.data.dataset import PreparedDataset
from torchrec_mt.distributed import sharding
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.quiet import quiet_dependencies
from torchrec_mt.distributed.runtime import Runtime
from torchrec_mt.distributed.sharding import table_kernels

FUSED, DENSE = SplitTableBatchedEmbeddingBagsCodegen, DenseTableBatchedEmbeddingBagsCodegen
SHARDINGS = {
    "row_wise": ShardingConfig(default="row_wise"),
    "table_wise": ShardingConfig(default="table_wise"),
    "data_parallel": ShardingConfig(default="data_parallel"),
    "mixed": ShardingConfig(default="row_wise", tables={"product_id": "table_wise", "kind": "data_parallel"}),
}
KERNELS = {"row_wise": [FUSED], "table_wise": [FUSED], "data_parallel": [DENSE], "mixed": [FUSED, FUSED, DENSE]}
KEYS = 3
"""Of the batch: each is looked up by one kernel."""


class Wanted(TorchDispatchMode):
    """Remembers which keys' weights any operator of fbgemm is told to compute a gradient for; None is all."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[int] | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = [argument.name for argument in func._schema.arguments]
        if "feature_requires_grad" in names:
            value = dict(zip(names, args, strict=False)).get("feature_requires_grad")
            self.told.append(None if value is None else value.tolist())
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def quiet() -> None:
    """In each test anew: pytest takes a program's filters of warnings back."""
    quiet_dependencies()


def told_in_a_step(dataset: PreparedDataset, here: Runtime, path: Path, kind: str) -> list[list[int] | None]:
    trainer = tiny_trainer(dataset, path, here, sharding=SHARDINGS[kind])
    with Wanted() as wanted:
        trainer.steps.train_step(next(tiny_batches(dataset)), 0)
    return wanted.told


@pytest.mark.parametrize("kind", list(SHARDINGS))
def test_every_kernel_is_told(dataset: PreparedDataset, here: Runtime, tmp_path: Path, kind: str) -> None:
    told = told_in_a_step(dataset, here, tmp_path, kind)
    assert len(told) == len(KERNELS[kind])
    assert [want for wants in told for want in wants or [1]] == [0] * KEYS


@pytest.mark.parametrize("kind", list(SHARDINGS))
def test_untold_they_compute_it(
    dataset: PreparedDataset, here: Runtime, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap: nothing asks for this gradient. Where it is gone, so may the telling be."""
    monkeypatch.setattr(sharding, "_take_weights_as_constants", lambda model: None)
    assert told_in_a_step(dataset, here, tmp_path, kind) == [None] * len(KERNELS[kind])


def gradient_of_weights(kernel: nn.Module) -> Tensor:
    """Of two bags of one row for each key of a kernel."""
    keys = len(kernel.get_buffer("D_offsets")) - 1
    weights = torch.ones(2 * keys, requires_grad=True)
    pooled = kernel(
        indices=torch.zeros(2 * keys, dtype=torch.int64),
        offsets=torch.arange(2 * keys + 1),
        per_sample_weights=weights,
    )
    pooled.sum().backward()
    assert weights.grad is not None
    return weights.grad


@pytest.mark.parametrize("kind", list(SHARDINGS))
def test_told_kernels_give_none(
    dataset: PreparedDataset, here: Runtime, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = table_kernels(tiny_trainer(dataset, tmp_path, here, sharding=SHARDINGS[kind]).model)
    monkeypatch.setattr(sharding, "_take_weights_as_constants", lambda model: None)
    untold = table_kernels(tiny_trainer(dataset, tmp_path, here, sharding=SHARDINGS[kind]).model)
    assert [type(kernel) for kernel in told] == [type(kernel) for kernel in untold] == KERNELS[kind]
    assert not any(gradient_of_weights(kernel).any() for kernel in told)
    assert all(gradient_of_weights(kernel).all() for kernel in untold)


def test_modules_do_not_show_the_kernels(dataset: PreparedDataset, here: Runtime, tmp_path: Path) -> None:
    model = tiny_trainer(dataset, tmp_path, here).model
    assert table_kernels(model)
    assert not any(isinstance(module, FUSED | DENSE) for module in model.modules())
