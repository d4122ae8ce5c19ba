"""A plan as a document: what lies where, what it takes, who is busiest. Made by planner.py, read by reading.py; JSON,
stable, no TorchRec.

All times and the buffers are estimates of TorchRec's models; weights and sums are counted.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from torchrec_mt.distributed.plans.choices import Choice, Cost, TableChoices
from torchrec_mt.distributed.plans.clusters import Cluster

FORMAT = 1
ESTIMATES = (
    "times and buffers are estimates of TorchRec's planner for tables alone (towers and losses are not in them), "
    "weights and sums are counted"
)
PARTS = ("forward_compute", "forward_comms", "backward_compute", "backward_comms", "prefetch")


@dataclass(frozen=True, kw_only=True)
class PlannedTable:
    """A table and its way.

    Args:
        path: of its collection in the model. lookups: mean per row of the batch, by key.
        shards: each [rank, row, column, rows, columns, index into costs]; a replicated table has one per rank.
        costs: bytes and milliseconds of a shard (`Cost`), the distinct ones.
        cache_share: rows kept on the device by `fused_uvm_caching`.
    """

    path: str
    name: str
    rows: int
    dim: int
    dtype: str
    lookups: list[float]
    sharding_type: str
    kernel: str
    cache_share: float | None
    shards: list[list[int]]
    costs: list[dict[str, float]]

    @property
    def ranks(self) -> list[int]:
        """Ranks that hold some of it."""
        return sorted({shard[0] for shard in self.shards})

    def total(self, part: str) -> float:
        """Sum over its shards of a part of their cost."""
        return sum(self.costs[shard[5]][part] for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class RankLoad:
    """What a rank holds (bytes) and does (milliseconds of a step).

    Args:
        weights, sums, buffers: of tables, on the device (CPUs: in the host's memory). dense: parameters of towers with
            gradients and optimizer. reserved: left to activations, kernels, the system. capacity: of the device.
        host, host_capacity: tables in the host's memory beside a GPU, and the rank's share of it.
    """

    rank: int
    weights: int
    sums: int
    buffers: int
    dense: int
    reserved: int
    capacity: int
    host: int
    host_capacity: int
    forward_compute: float
    forward_comms: float
    backward_compute: float
    backward_comms: float
    prefetch: float

    @property
    def used(self) -> int:
        """Bytes of the device that are spoken for, without the reserve."""
        return self.weights + self.sums + self.buffers + self.dense

    @property
    def ms(self) -> float:
        """Milliseconds, nothing overlapping."""
        return sum(getattr(self, part) for part in PARTS)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan for a model on a cluster.

    Args:
        cluster: as a cluster file has it. batch_rows: rows of a batch per rank. reserve: share of the memory kept free.
        optimizer: of the tables. bound_ms: no plan of the allowed ways has a busiest rank with less.
    """

    format: int = FORMAT
    estimates: str = ESTIMATES
    model: str
    torchrec: str
    cluster: dict[str, Any]
    batch_rows: int
    reserve: float
    optimizer: str
    bound_ms: float
    tables: list[PlannedTable]
    ranks: list[RankLoad]

    @property
    def busiest(self) -> RankLoad:
        """The rank with most to do, the first of equals."""
        top = max(rank.ms for rank in self.ranks)
        return next(rank for rank in self.ranks if rank.ms >= top * (1 - 1e-9))

    @property
    def label(self) -> str:
        """The cluster's name: HOSTSxRANKSxDEVICE."""
        return "{hosts}x{ranks_per_host}x{name}".format(**self.cluster)

    @property
    def imbalance(self) -> float:
        """The busiest rank's time over the mean."""
        mean = sum(rank.ms for rank in self.ranks) / len(self.ranks)
        return self.busiest.ms / mean if mean else 1.0

    @property
    def table_bytes(self) -> int:
        """Weights and sums of all tables on all ranks, wherever they lie."""
        return sum(rank.weights + rank.sums + rank.host for rank in self.ranks)

    def table(self, name: str) -> PlannedTable:
        """The table of a name."""
        return next(table for table in self.tables if table.name == name)

    def to_json(self) -> str:
        """With a summary that readers need not compute; a list of numbers is a line."""
        busiest = self.busiest
        whole = asdict(self) | {
            "summary": {
                "busiest_rank": busiest.rank,
                "busiest_ms": busiest.ms,
                "imbalance": self.imbalance,
                "table_bytes": self.table_bytes,
                "fullest_used": max(rank.used for rank in self.ranks),
                "fullest_host": max(rank.host for rank in self.ranks),
            }
        }
        return re.sub(r"\[[-\d.e+,\s]+\]", lambda found: " ".join(found[0].split()), json.dumps(whole, indent=1)) + "\n"


def planned_table(table: TableChoices, choice: Choice, ranks: Sequence[int], name: str) -> PlannedTable:
    """A table of the search with where it went."""
    return PlannedTable(
        path=table.path,
        name=name,
        rows=table.rows,
        dim=table.dim,
        dtype=table.dtype,
        lookups=list(table.lookups),
        sharding_type=choice.sharding_type,
        kernel=choice.kernel,
        cache_share=choice.cache_share,
        shards=[
            [int(rank), *shard, cost] for rank, shard, cost in zip(ranks, choice.shards, choice.cost_of, strict=True)
        ],
        costs=[asdict(cost) for cost in choice.costs],
    )


def rank_loads(tables: Sequence[PlannedTable], cluster: Cluster, *, dense: int, reserve: float) -> list[RankLoad]:
    """What every rank holds and does."""
    names = [field.name for field in fields(Cost)]
    sums = {name: np.zeros(cluster.world_size) for name in names}
    for table in tables:
        for rank, *_, cost in table.shards:
            for name in names:
                sums[name][rank] += table.costs[cost][name]
    capacity = cluster.device_bytes or cluster.host_bytes
    return [
        RankLoad(
            rank=rank,
            weights=int(sums["weights"][rank]),
            sums=int(sums["sums"][rank]),
            buffers=int(sums["buffers"][rank]),
            dense=dense,
            reserved=int(reserve * capacity),
            capacity=capacity,
            host=int(sums["host"][rank]),
            host_capacity=cluster.host_bytes if cluster.device_bytes else 0,
            **{part: float(sums[part][rank]) for part in PARTS},
        )
        for rank in range(cluster.world_size)
    ]
