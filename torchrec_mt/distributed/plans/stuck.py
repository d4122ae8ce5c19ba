"""Tables that do not fit: what there is to change of them, and by arithmetic alone how far they are from fitting."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from torchrec import EmbeddingBagCollection
from torchrec.modules.embedding_configs import DataType

from torchrec_mt.distributed.layouts import (
    Auto,
    ColumnWise,
    DataParallel,
    Grid,
    Layout,
    RowWise,
    TableRowWise,
    TableWise,
    kernel_of,
    leaves_a_rank_empty,
)
from torchrec_mt.distributed.plans.choices import Cost
from torchrec_mt.distributed.plans.planner import Problem, capacity_of
from torchrec_mt.distributed.table_optimizers import Adagrad, RowWiseAdagrad, Sgd, TableOptimizer
from torchrec_mt.schema import TABLE_PREFIX, declared_table

WithKernel = TableWise | RowWise | ColumnWise | TableRowWise | Grid
_SUSPECTS = 3
"""Tables that are tried one by one, of each kind of change."""


@dataclass(frozen=True, kw_only=True)
class StuckTable:
    """A table of the model. `size`: bytes of its rows and the optimizer's sums; `half`: whether it is float16;
    `declared`: the dataset's table, of which it may be a task's own copy."""

    name: str
    rows: int
    dim: int
    half: bool
    layout: Layout
    size: int

    @property
    def declared(self) -> str:
        return declared_table(self.name)

    @property
    def columns(self) -> int:
        """Blocks of columns that its layout cuts it into."""
        return self.layout.columns if isinstance(self.layout, ColumnWise | Grid) else 1

    @property
    def on_device(self) -> bool:
        """Whether it lies in the memory of devices (of the host on CPUs)."""
        return kernel_of(self.layout) in ("fused", "dense")


@dataclass(frozen=True, kw_only=True)
class Stuck:
    """What does not fit.

    Args:
        table: the one without a place. piece: what the largest piece of it takes (`TablesDoNotFitError`).
        cluster: the text that names it. batch_size: `reader.batch_size`.
    """

    problem: Problem
    table: str
    piece: Cost
    cluster: str
    batch_size: int

    @cached_property
    def tables(self) -> list[StuckTable]:
        """Largest first."""
        return sorted(_tables(self.problem), key=lambda table: (-table.size, table.name))

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.problem.cluster.world_size

    @cached_property
    def room(self) -> float:
        """Bytes that a rank's device has for tables (CPUs: the rank's share of the host)."""
        return float(capacity_of(self.problem).device_W[0])

    @cached_property
    def room_on_host(self) -> float:
        """Bytes that a rank beside a GPU has for tables in the host's memory."""
        return float(capacity_of(self.problem).host_W[0])

    @cached_property
    def size(self) -> int:
        """Bytes of all tables that lie on devices."""
        return sum(table.size for table in self.tables if table.on_device)

    def suspects(self, among: Callable[[StuckTable], bool] = lambda table: True) -> list[StuckTable]:
        """The tables to change alone: the largest, and the one without a place."""
        some = [table for table in self.tables if among(table)]
        rest = [table for table in some[_SUSPECTS:] if table.name == self.table]
        return [*some[: _SUSPECTS - len(rest)], *rest]

    @property
    def excess(self) -> float:
        """Bytes that all tables on devices have too many."""
        return self.size - self.room * self.world_size

    @property
    def too_large_alone(self) -> bool:
        """Whether the piece has no place on an empty rank."""
        return self.piece.device > self.room or self.piece.host > self.room_on_host

    @property
    def crowded_by_buffers(self) -> bool:
        """Whether the piece's buffers alone leave no room for a row of it."""
        return self.piece.buffers > self.room

    @property
    def helped_by_ranks(self) -> bool:
        """Whether more ranks could be of use: buffers do not get smaller by them, nor do some pieces."""
        cluster, layout = self.problem.cluster, self.problem.layout(self.table)
        match layout:
            case TableWise() | DataParallel() | ColumnWise():
                stays = True
            case TableRowWise() | Grid():
                stays = cluster.ranks_per_host >= cluster.device.ranks_per_host
            case _:
                stays = False
        return self.room > 0 and not self.crowded_by_buffers and not (stays and self.too_large_alone)

    def share(self, table: StuckTable) -> float:
        """About what share of a table may stay."""
        together = 1 - self.excess / table.size if table.on_device else 1.0
        alone = 1.0
        if table.name == self.table:
            on_host = self.room_on_host / self.piece.host if self.piece.host else 1.0
            alone = min(self.room / self.piece.device if self.piece.device else 1.0, on_host)
        return max(0.0, min(alone, together, 1.0))

    def movable(self, table: StuckTable) -> WithKernel:
        """A layout of the table that knows kernels: its own, or in place of `auto` and copies one of whole rows."""
        match table.layout:
            case Auto() | DataParallel():
                empty = leaves_a_rank_empty(table.rows, self.world_size)
                return TableWise(kind="table_wise") if empty else RowWise(kind="row_wise")
            case layout:
                return layout


def _tables(problem: Problem) -> Iterator[StuckTable]:
    for part in problem.module.modules():
        if isinstance(part, EmbeddingBagCollection):
            for config in part.embedding_bag_configs():
                name, rows, dim = config.name.removeprefix(TABLE_PREFIX), config.num_embeddings, config.embedding_dim
                half, layout = config.data_type == DataType.FP16, problem.layout(name)
                size = rows * dim * (2 if half else 4) + 4 * _sums(problem.optimizer, rows, dim)
                yield StuckTable(name=name, rows=rows, dim=dim, half=half, layout=layout, size=size)


def _sums(optimizer: TableOptimizer, rows: int, dim: int) -> int:
    match optimizer:
        case RowWiseAdagrad():
            return rows
        case Adagrad():
            return rows * dim
        case Sgd():
            return 0
