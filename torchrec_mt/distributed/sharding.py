"""Applies a plan to the plain model: tables sharded, their optimizer fused into the backward, the rest replicated.

Tables that the plan replicates have no fused optimizer: `replicated_tables` names them for one of the same rule.
"""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward  # type: ignore[attr-defined]
from torchrec import KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.batched_embedding_kernel import BaseBatchedEmbeddingBag
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from torchrec.distributed.types import ShardingPlan

from torchrec_mt.batch import Batch
from torchrec_mt.distributed.collectives import max_over_ranks
from torchrec_mt.distributed.planning import CommunicationConfig, make_sharder
from torchrec_mt.distributed.table_optimizers import RowWiseAdagrad, TableOptimizer, fused_rule


def fuse_table_optimizer(tables: nn.Module, learning_rate: float, optimizer: TableOptimizer | None = None) -> None:
    """Marks tables for their optimizer inside the backward pass; row-wise Adagrad where None. Call before `shard`.

    Every backward through a table is then an update: call exactly one a step. Tables that the plan replicates lose the
    mark: they are updated by `Optimizers.step`.
    """
    rule, arguments = fused_rule(optimizer or RowWiseAdagrad(), learning_rate)
    apply_optimizer_in_backward(rule, tables.parameters(), arguments)


def shard(
    model: nn.Module,
    plan: ShardingPlan,
    device: torch.device,
    communication: CommunicationConfig | None = None,
) -> DistributedModelParallel:
    """Shards the tables by the plan and replicates everything else; rank 0's dense weights become everybody's."""
    with warnings.catch_warnings():
        # TorchRec 1.8 passes DDP an argument that torch 2.13 renamed.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        sharded = DistributedModelParallel(
            model,
            device=device,
            plan=plan,
            sharders=[make_sharder(communication or CommunicationConfig(), device)],
            data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=True),
        )
    _take_weights_as_constants(sharded)
    _count_updates(sharded)
    return sharded


def _take_weights_as_constants(model: nn.Module) -> None:
    """Tells the lookup kernels that weights of bags want no gradient; they compute one unasked (a fifth of a step)."""

    def say(kernel: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        features = len(kernel.get_buffer("D_offsets")) - 1
        wanted = named["indices"].new_zeros(features, dtype=torch.int32)
        return arguments, named | {"feature_requires_grad": wanted}

    for kernel in table_kernels(model):
        kernel.register_forward_pre_hook(say, with_kwargs=True)


def _count_updates(model: nn.Module) -> None:
    """Has fused kernels raise where a second backward of a step would be a second update; see `allow_one_update`."""

    def watch(kernel: nn.Module, arguments: Any, pooled: Tensor) -> None:
        def about_to_update(gradient: Tensor) -> None:
            left = getattr(kernel, "updates_left", None)
            if left is not None:
                if not left:
                    raise ValueError(
                        "a second backward of a step reached a table whose optimizer is fused into the backward: it "
                        "would be a second update; add the losses up and call backward once"
                    )
                kernel.updates_left = left - 1  # type: ignore[assignment]

        if pooled.requires_grad:
            pooled.register_hook(about_to_update)

    for kernel in table_kernels(model):
        if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen):
            kernel.register_forward_hook(watch)


def allow_one_update(kernels: Iterable[nn.Module]) -> None:
    """At the start of a step: from now on, one backward through each kernel (of `table_kernels`), and no other.

    Kernels for which it was never called are not watched.
    """
    for kernel in kernels:
        kernel.updates_left = 1  # type: ignore[assignment]


def table_kernels(model: nn.Module) -> list[nn.Module]:
    """The kernels that look up this rank's shards of the tables."""
    return [bags.emb_module for bags in shards_here(model)]


def shards_here(model: nn.Module) -> list[BaseBatchedEmbeddingBag]:
    """This rank's shards of the tables, by kernel. TorchRec keeps them in lists, out of `modules()`."""
    collections = [module for module in model.modules() if isinstance(module, ShardedEmbeddingBagCollection)]
    lookups = [lookup for collection in collections for lookup in collection._lookups]
    return [bags for lookup in lookups for bags in lookup.modules() if isinstance(bags, BaseBatchedEmbeddingBag)]


def is_table(name: str) -> bool:
    """Whether a parameter of the sharded model is an embedding table (or this rank's shards of one)."""
    return ".embedding_bags." in name


def replicated_tables(model: DistributedModelParallel) -> dict[str, nn.Parameter]:
    """Tables that are whole on every rank, by parameter name: someone must update them after the backward.

    Raises:
        ValueError: a sharded table without fused optimizer, a replicated one with it, or a table the model lacks.
    """
    replicated = {
        f"{path}.embedding_bags.{table}.weight": parameter.sharding_type == "data_parallel"
        for path, tables in model.plan.plan.items()
        for table, parameter in tables.items()
    }
    tables = {name: parameter for name, parameter in model.named_parameters() if is_table(name)}
    if tables.keys() != replicated.keys():
        raise ValueError(f"tables of plan and model differ: {sorted(tables.keys() ^ replicated.keys())}")
    fused = set(model.fused_optimizer.params)
    # A rank that holds nothing of a table (`numel` is 0) has nothing to update.
    wrong = [name for name, table in tables.items() if table.numel() and replicated[name] == (name in fused)]
    if wrong:
        raise ValueError(f"tables that no optimizer would update, or two would: {wrong}")
    return {name: table for name, table in tables.items() if replicated[name]}


def pad_rows(batch: Batch) -> Batch:
    """The batch with empty rows up to the largest batch of any rank, to which nothing refers."""
    features = pad_features(batch.features)
    return batch if features is batch.features else replace(batch, features=features)


def pad_features(features: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """The features with empty rows up to the most of any rank.

    Row-wise sharding in TorchRec 1.8 fails in the backward pass when ranks hold different numbers of rows.
    """
    rows = features.stride()
    wanted = max_over_ranks(rows, features.device())
    if wanted == rows:
        return features
    lengths_FE = features.lengths().view(len(features.keys()), rows)
    return KeyedJaggedTensor(
        keys=features.keys(),
        values=features.values(),
        weights=features.weights(),
        lengths=torch.nn.functional.pad(lengths_FE, (0, wanted - rows)).flatten(),
    )
