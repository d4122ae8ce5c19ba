"""The ways in which a table may lie on a cluster, each with what its shards take. estimates.py makes them."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Spread = Literal["rank", "ranks", "host", "hosts"]
"""Where shards go: each to some rank, one to every rank, to the ranks of one host, or of several."""

CACHE_SHARE = 0.2
"""Of a table's rows, those that `fused_uvm_caching` keeps on the device: TorchRec's default."""


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What the search may choose from for a table.

    Args:
        ways: sharding types with their compute kernels. lookups: mean per row of the batch, for each key that reads it.
        block_columns: width of a column-wise or grid block; None for TorchRec's least, 128.
        cache_share: rows that `fused_uvm_caching` keeps on the device.
    """

    ways: tuple[tuple[str, str], ...]
    lookups: tuple[float, ...]
    block_columns: int | None = None
    cache_share: float = CACHE_SHARE


@dataclass(frozen=True)
class Cost:
    """What one shard takes: bytes of memory, milliseconds of a step.

    Args:
        weights, sums, buffers: of the device (of the host on CPUs): rows, the optimizer's sums, what is received and
            sent, gradients of replicated tables, and a cache's book-keeping.
        host: of the host's memory beside a GPU.
    """

    weights: int
    sums: int
    buffers: int
    host: int
    forward_compute: float
    forward_comms: float
    backward_compute: float
    backward_comms: float
    prefetch: float

    @property
    def device(self) -> int:
        """All bytes of the device."""
        return self.weights + self.sums + self.buffers

    @property
    def ms(self) -> float:
        """Milliseconds of a step, nothing overlapping, as TorchRec's planner adds them up."""
        return self.forward_compute + self.forward_comms + self.backward_compute + self.backward_comms + self.prefetch


@dataclass(frozen=True)
class Choice:
    """One way to shard a table: S shards as [row, column, rows, columns], each with one of a few distinct costs."""

    sharding_type: str
    kernel: str
    spread: Spread
    shards: tuple[tuple[int, int, int, int], ...]
    costs: tuple[Cost, ...]
    cost_of: tuple[int, ...]
    cache_share: float | None
    ms_S: np.ndarray = field(repr=False, compare=False)
    device_S: np.ndarray = field(repr=False, compare=False)
    host_S: np.ndarray = field(repr=False, compare=False)

    @property
    def total_ms(self) -> float:
        """Of all shards together."""
        return float(self.ms_S.sum())


@dataclass(frozen=True)
class TableChoices:
    """A table of the model and the ways it may lie. `path` is of its collection."""

    path: str
    name: str
    rows: int
    dim: int
    dtype: str
    lookups: tuple[float, ...]
    choices: tuple[Choice, ...]
