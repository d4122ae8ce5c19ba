"""What a rank holds once its model is built, counted tensor by tensor: what a plan foretells is held against it."""

from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor
from torchrec.distributed import DistributedModelParallel

from torchrec_mt.distributed.collectives import gather_numbers
from torchrec_mt.distributed.sharding import is_table, shards_here, table_kernels
from torchrec_mt.training.optim import Optimizers

HELD = ("weights", "sums", "dense")


def held_by_ranks(
    model: DistributedModelParallel, optimizers: Optimizers, device: torch.device
) -> list[dict[str, int]]:
    """Bytes of every rank, in rank order: tables' weights, their optimizer's sums, dense parameters. Collective."""
    weights = sum(weight.nbytes for bags in shards_here(model) for weight in bags.split_embedding_weights())
    fused = [kernel for kernel in table_kernels(model) if isinstance(kernel, SplitTableBatchedEmbeddingBagsCodegen)]
    sums = _bytes([kernel.split_optimizer_states() for kernel in fused]) + optimizers.replicated_sums()
    dense = sum(parameter.nbytes for name, parameter in model.named_parameters() if not is_table(name))
    ranks = gather_numbers([weights, sums, dense], device)
    return [dict(zip(HELD, map(int, numbers), strict=True)) for numbers in ranks]


def _bytes(states: Any) -> int:
    """Of tensors in lists of lists."""
    if isinstance(states, Tensor):
        return states.nbytes
    return sum(map(_bytes, states)) if isinstance(states, list | tuple) else 0
