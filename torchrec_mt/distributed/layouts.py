"""How a table may lie over ranks: one class per way, what each asks of table, optimizer and machine, and why not.

A layout that cannot be right is refused with its reason, on every rank alike, before anything is sharded.
"""

import os
from dataclasses import dataclass
from typing import Literal

from torchrec_mt.distributed.table_optimizers import RowWiseAdagrad, TableOptimizer
from torchrec_mt.errors import UserError, within

Kernel = Literal["fused", "fused_uvm", "fused_uvm_caching"]
"""`fused`: in the device's memory. The others keep the table in the host's, where a GPU reaches it, cached or not."""

LayoutName = Literal["auto", "data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise", "grid"]


@dataclass(frozen=True, kw_only=True)
class Auto:
    """The planner chooses between table-wise, row-wise and, on several hosts, table-row-wise."""

    kind: Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """The whole table on every rank; its gradient is dense and averaged over ranks, the update follows the backward."""

    kind: Literal["data_parallel"]


@dataclass(frozen=True, kw_only=True)
class TableWise:
    """The whole table on one rank."""

    kind: Literal["table_wise"]
    kernel: Kernel = "fused"


@dataclass(frozen=True, kw_only=True)
class RowWise:
    """Rows in equal blocks over all ranks."""

    kind: Literal["row_wise"]
    kernel: Kernel = "fused"


@dataclass(frozen=True, kw_only=True)
class _Columns:
    columns: int = 2
    sum_per_block: bool = False
    kernel: Kernel = "fused"

    def __post_init__(self) -> None:
        within(self, 2, 1024, "columns")


@dataclass(frozen=True, kw_only=True)
class ColumnWise(_Columns):
    """Blocks of columns, each on one rank.

    Args:
        columns: into how many blocks; each is a multiple of 4 wide.
        sum_per_block: accepts that row-wise Adagrad keeps a sum per row and block, in place of one per row, and so
            learns differently from the unsharded table.
    """

    kind: Literal["column_wise"]


@dataclass(frozen=True, kw_only=True)
class TableRowWise:
    """Rows in equal blocks over the ranks of one host."""

    kind: Literal["table_row_wise"]
    kernel: Kernel = "fused"


@dataclass(frozen=True, kw_only=True)
class Grid(_Columns):
    """Blocks of columns, each on one host and there in blocks of rows over its ranks. Keys as of ColumnWise."""

    kind: Literal["grid"]


Layout = Auto | DataParallel | TableWise | RowWise | ColumnWise | TableRowWise | Grid


def layout_of(name: LayoutName | Layout) -> Layout:
    """A layout named in short has the defaults of its class."""
    match name:
        case "auto":
            return Auto(kind=name)
        case "data_parallel":
            return DataParallel(kind=name)
        case "table_wise":
            return TableWise(kind=name)
        case "row_wise":
            return RowWise(kind=name)
        case "column_wise":
            return ColumnWise(kind=name)
        case "table_row_wise":
            return TableRowWise(kind=name)
        case "grid":
            return Grid(kind=name)
        case layout:
            return layout


def kernel_of(layout: Layout) -> str:
    """The compute kernel, by TorchRec's name."""
    match layout:
        case Auto():
            return "fused"
        case DataParallel():
            return "dense"
        case _:
            return layout.kernel


@dataclass(frozen=True)
class Hosts:
    """The machines of a job: `count` of them, each with `ranks` ranks; None where ranks do not fall evenly on them."""

    count: int
    ranks: int

    @classmethod
    def of(cls, world_size: int) -> "Hosts | None":
        """From LOCAL_WORLD_SIZE, which torchrun sets; without it all ranks are one host.

        TorchRec takes 8 where it is missing and one host where it does not divide the ranks, either without an error.
        """
        text = os.environ.get("LOCAL_WORLD_SIZE", str(world_size))
        ranks = int(text) if text.isdecimal() else 0
        return cls(world_size // ranks, ranks) if ranks and world_size % ranks == 0 else None


def leaves_a_rank_empty(rows: int, ranks: int) -> bool:
    """Whether row-wise blocks, all of the first one's size, are used up before the last rank.

    fbgemm's CPU backward tells tables by the rows counted up to each (`hash_size_cumsum`). One without rows counts as
    much as the next: the two are taken for one and, where they differ in width, rows get wrong gradients unnoticed.
    """
    return -(-rows // ranks) * (ranks - 1) >= rows


def _sharing(layout: Layout, *, world_size: int, hosts: Hosts | None) -> int:
    """Over how many ranks a layout spreads the rows of a table."""
    match layout:
        case RowWise():
            return world_size
        case TableRowWise() | Grid():
            return hosts.ranks if hosts else 1
        case _:
            return 1


def with_rows_for_all(layout: Layout, rows: int, *, world_size: int, hosts: Hosts | None) -> Layout:
    """The layout, or the whole table on one rank where its blocks of rows would leave some rank without any."""
    sharing = _sharing(layout, world_size=world_size, hosts=hosts)
    if isinstance(layout, RowWise | TableRowWise | Grid) and leaves_a_rank_empty(rows, sharing):
        return TableWise(kind="table_wise", kernel=layout.kernel)
    return layout


def check_layout(
    table: str,
    layout: Layout,
    *,
    rows: int,
    dim: int,
    optimizer: TableOptimizer,
    device_type: str,
    hosts: Hosts | None,
    world_size: int,
) -> None:
    """Refuses what would not run, or would not learn what the unsharded table learns.

    Args:
        table: its name. rows, dim: its shape.

    Raises:
        UserError: naming the table, its layout, the reason and the remedy.
    """
    where = f"sharding of table '{table}' is '{layout.kind}'"
    if device_type != "cuda" and kernel_of(layout) not in ("fused", "dense"):
        raise UserError(
            f"{where} with kernel = '{kernel_of(layout)}': it lets a GPU reach the host's memory, and this device is "
            f"'{device_type}': take kernel = 'fused'"
        )
    if isinstance(layout, TableRowWise | Grid):
        _check_hosts(where, layout, hosts)
    sharing = _sharing(layout, world_size=world_size, hosts=hosts)
    if leaves_a_rank_empty(rows, sharing):
        raise UserError(
            f"{where}, and its {rows} rows in equal blocks for {sharing} ranks leave one without any, whose kernel "
            "may train other tables wrongly: take 'table_wise' or 'data_parallel'"
        )
    if isinstance(layout, ColumnWise | Grid):
        if dim % (4 * layout.columns):
            raise UserError(
                f"{where} with columns = {layout.columns}: the width {dim} does not fall into so many equal blocks "
                "of a multiple of 4: change columns, or the table's dim"
            )
        by_row = isinstance(optimizer, RowWiseAdagrad)
        if by_row and not layout.sum_per_block:
            raise UserError(
                f"{where} and optim.tables is 'rowwise_adagrad': each block of columns would keep its own sum of "
                "squared gradients per row, and the table learn differently from an unsharded one. Accept that with "
                "sum_per_block = true, or take optim.tables.kind = 'adagrad' or 'sgd', or another layout"
            )
        if layout.sum_per_block and not by_row:
            raise UserError(
                f"{where} with sum_per_block = true, but optim.tables is '{optimizer.kind}', which has no sum per row: "
                "leave the key out"
            )


def _check_hosts(where: str, layout: TableRowWise | Grid, hosts: Hosts | None) -> None:
    if hosts is None:
        raise UserError(
            f"{where}, which lays tables on hosts, but LOCAL_WORLD_SIZE = '{os.environ.get('LOCAL_WORLD_SIZE')}' does "
            "not divide the number of ranks: start as many ranks on every host"
        )
    if hosts.count == 1:
        same = "row_wise" if isinstance(layout, TableRowWise) else "column_wise"
        raise UserError(
            f"{where}, which lays tables on hosts, and all {hosts.ranks} ranks are on one (LOCAL_WORLD_SIZE): take "
            f"'{same}'"
        )
    if isinstance(layout, Grid) and layout.columns > hosts.count:
        raise UserError(
            f"{where} with columns = {layout.columns}: each block of columns needs a host of its own, and there are "
            f"{hosts.count}: lower columns"
        )
