"""What each way of sharding a table takes, by TorchRec's models of storage and time.

All that looks into TorchRec's planner is here; tests/unit/distributed/plans/test_estimates.py holds it against the
planner itself. Estimates are made once per distinct shard of distinct tables: TorchRec makes one per shard of every
table, which for a thousand tables takes longer than the search.

TorchRec's storage is corrected where it is known to be wrong: an optimizer's sums are float32 whatever the table is, a
block of columns has a sum for each row, and replicated tables have gradients.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.constants import DEFAULT_PERF_ESTIMATOR
from torchrec.distributed.planner.enumerators import get_partition_by_type
from torchrec.distributed.planner.estimator import EmbeddingPerfEstimatorFactory
from torchrec.distributed.planner.planners import to_sharding_plan
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator, _calculate_optimizer_sizes
from torchrec.distributed.planner.types import Shard, ShardingOption
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets
from torchrec.distributed.types import CacheParams, ModuleSharder, ShardingPlan
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from torchrec_mt.distributed.plans.choices import CACHE_SHARE, Allowed, Choice, Cost, Spread, TableChoices
from torchrec_mt.distributed.plans.clusters import Cluster

Way = tuple[str, str]
"""Sharding type and compute kernel, by TorchRec's names."""
_SPREADS: dict[str, Spread] = {"device": "rank", "uniform": "ranks", "host": "host", "multi_host": "hosts"}


def topology_of(cluster: Cluster) -> Topology:
    """The cluster in TorchRec's words."""
    device = cluster.device

    def per_ms(gb_s: float) -> float:
        return max(gb_s, 1e-6) * 1e6

    return Topology(
        world_size=cluster.world_size,
        local_world_size=cluster.ranks_per_host,
        compute_device=device.kind,
        hbm_cap=cluster.device_bytes,
        ddr_cap=cluster.host_bytes,
        hbm_mem_bw=per_ms(device.memory_gb_s),
        ddr_mem_bw=per_ms(device.host_memory_gb_s / cluster.ranks_per_host),
        hbm_to_ddr_mem_bw=per_ms(device.host_link_gb_s),
        intra_host_bw=per_ms(device.intra_host_gb_s),
        inter_host_bw=per_ms(device.inter_host_gb_s),
    )


def enumerate_choices(
    module: nn.Module,
    sharder: ModuleSharder[Any],
    topology: Topology,
    allowed: Mapping[str, Allowed],
    *,
    batch_rows: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[TableChoices]:
    """Every table of `module` with all it may do.

    Args:
        module: unsharded, on any device (`meta` does). allowed: by the table's name in the module.
        batch_rows: rows of a batch per rank. progress: estimates made, and of how many.
    """
    estimates = _Estimates(sharder, topology)
    tables = [
        _Table(path, part, name, tensor, allowed[name], batch_rows)
        for path, part in module.named_modules()
        if isinstance(part, sharder.module_type)
        for name, tensor in sharder.shardable_parameters(part).items()
    ]
    for table in tables:
        for way in table.allowed.ways:
            estimates.ask(table, way)
    estimates.answer(progress)
    return [
        TableChoices(
            path=table.path,
            name=table.name,
            rows=table.tensor.shape[0],
            dim=table.tensor.shape[1],
            dtype=str(table.tensor.dtype).removeprefix("torch."),
            lookups=table.allowed.lookups,
            choices=tuple(estimates.choice(table, way) for way in table.allowed.ways),
        )
        for table in tables
    ]


class _Table(NamedTuple):
    """A table of the model, and what is asked of it."""

    path: str
    part: nn.Module
    name: str
    tensor: torch.Tensor
    allowed: Allowed
    batch_rows: int

    def key(self, way: Way) -> tuple[Any, ...]:
        """Equal for tables of which estimates are equal."""
        told = self.allowed
        shape = (*self.tensor.shape, self.tensor.dtype, _optimizer(self.tensor), id(self.part))
        return (*shape, way, told.lookups, told.block_columns, told.cache_share, self.batch_rows)

    def option(self, way: Way) -> ShardingOption:
        """TorchRec's word for a table in one of its ways, without its shards."""
        sharding_type, kernel = way
        cached = CacheParams(load_factor=self.allowed.cache_share) if kernel == "fused_uvm_caching" else None
        return ShardingOption(
            name=self.name,
            tensor=self.tensor,
            module=(self.path, self.part),
            input_lengths=list(self.allowed.lookups),
            batch_size=self.batch_rows,
            sharding_type=sharding_type,
            partition_by=get_partition_by_type(sharding_type),
            compute_kernel=kernel,
            shards=[],
            cache_params=cached,
            is_pooled=True,
        )


class _Estimates:
    """Asks TorchRec's estimators once for what is equal."""

    def __init__(self, sharder: ModuleSharder[Any], topology: Topology) -> None:
        self._topology = topology
        self._sharders = build_sharder_data_map({sharder_name(sharder.module_type): sharder})
        self._estimators = [
            EmbeddingPerfEstimatorFactory.create(DEFAULT_PERF_ESTIMATOR, topology=topology),
            EmbeddingStorageEstimator(topology=topology),
        ]
        self._asked: dict[tuple[Any, ...], tuple[ShardingOption, list[list[int]], list[list[int]]]] = {}
        self._choices: dict[tuple[Any, ...], Choice] = {}

    def ask(self, table: _Table, way: Way) -> None:
        key = table.key(way)
        if key in self._asked:
            return
        sizes, offsets = calculate_shard_sizes_and_offsets(
            tensor=table.tensor,
            world_size=self._topology.world_size,
            local_world_size=self._topology.intra_group_size,
            sharding_type=way[0],
            col_wise_shard_dim=table.allowed.block_columns,
        )
        option = table.option(way)
        option.shards = [Shard(size=list(size), offset=[0, 0]) for size in dict.fromkeys(map(tuple, sizes))]
        self._asked[key] = option, sizes, offsets

    def answer(self, progress: Callable[[int, int], None]) -> None:
        asked = list(self._asked.items())
        for start in range(0, len(asked), 256):
            part = asked[start : start + 256]
            for estimator in self._estimators:
                estimator.estimate([option for _, (option, _, _) in part], self._sharders)
            for key, (option, sizes, offsets) in part:
                self._choices[key] = _choice(option, sizes, offsets)
            progress(start + len(part), len(asked))

    def choice(self, table: _Table, way: Way) -> Choice:
        return self._choices[table.key(way)]


def _optimizer(tensor: torch.Tensor) -> Any:
    return getattr(tensor, "_optimizer_classes", [None])[0]


def _choice(option: ShardingOption, sizes: Sequence[Sequence[int]], offsets: Sequence[Sequence[int]]) -> Choice:
    costs = tuple(_cost(option, shard) for shard in option.shards)
    index = {tuple(shard.size): place for place, shard in enumerate(option.shards)}
    cost_of = tuple(index[tuple(size)] for size in sizes)
    return Choice(
        sharding_type=option.sharding_type,
        kernel=option.compute_kernel,
        spread=_SPREADS[option.partition_by],
        shards=tuple(
            (row, column, rows, columns) for (row, column), (rows, columns) in zip(offsets, sizes, strict=True)
        ),
        costs=costs,
        cost_of=cost_of,
        cache_share=option.cache_load_factor,
        ms_S=np.array([costs[i].ms for i in cost_of]),
        device_S=np.array([costs[i].device for i in cost_of], dtype=np.float64),
        host_S=np.array([costs[i].host for i in cost_of], dtype=np.float64),
    )


def _cost(option: ShardingOption, shard: Shard) -> Cost:
    """TorchRec's estimates of a shard, taken apart and corrected."""
    tensor, (rows, columns) = option.tensor, shard.size
    assert shard.storage is not None
    assert shard.perf is not None
    on_cpu = shard.storage.hbm == 0 and option.compute_kernel in ("fused", "dense")
    device, host = (shard.storage.ddr, 0) if on_cpu else (shard.storage.hbm, shard.storage.ddr)
    weights = rows * columns * tensor.element_size()
    sums = _bytes_of_sums(_optimizer(tensor), rows, columns)
    match option.compute_kernel:
        case "fused_uvm":
            on_device, host = 0, weights + sums
        case "fused_uvm_caching":
            on_device, host = math.ceil(weights * (option.cache_load_factor or CACHE_SHARE)), weights + sums
        case _:
            on_device = weights
    estimated = _calculate_optimizer_sizes([on_device], _optimizer(tensor), tensor.shape)[0]
    buffers = max(0, device - on_device - estimated)
    if option.sharding_type == "data_parallel":
        buffers += 2 * weights  # the gradient, and the bucket in which it is averaged
    return Cost(
        weights=on_device,
        sums=sums if host == 0 else estimated,
        buffers=buffers,
        host=host,
        forward_compute=shard.perf.fwd_compute,
        forward_comms=shard.perf.fwd_comms,
        backward_compute=shard.perf.bwd_compute,
        backward_comms=shard.perf.bwd_comms,
        prefetch=shard.perf.prefetch_compute,
    )


def _bytes_of_sums(optimizer: Any, rows: int, columns: int) -> int:
    if optimizer is None or optimizer is torch.optim.SGD:
        return 0
    return 4 * rows if optimizer is RowWiseAdagrad else 4 * rows * columns


def sharding_plan(
    module: nn.Module,
    topology: Topology,
    tables: Sequence[TableChoices],
    placed: Sequence[tuple[Choice, Sequence[int]]],
) -> ShardingPlan:
    """TorchRec's plan of what was chosen: per table its way and the rank of each shard."""
    options = []
    for table, (choice, ranks) in zip(tables, placed, strict=True):
        part = module.get_submodule(table.path) if table.path else module
        tensor = next(p for name, p in part.named_parameters() if name.split(".")[-2] == table.name)
        allowed = Allowed(ways=(), lookups=table.lookups, cache_share=choice.cache_share or CACHE_SHARE)
        laid = _Table(table.path, part, table.name, tensor, allowed, 1)
        option = laid.option((choice.sharding_type, choice.kernel))
        option.shards = [
            Shard(size=[rows, columns], offset=[row, column], rank=int(rank))
            for (row, column, rows, columns), rank in zip(choice.shards, ranks, strict=True)
        ]
        options.append(option)
    return to_sharding_plan(options, topology)
