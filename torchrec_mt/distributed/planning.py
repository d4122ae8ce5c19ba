"""What the config says of how tables lie on ranks, and the sharder that can do it. The planning is in plans/."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torchrec import EmbeddingBagCollection
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import ShardingPlan

from torchrec_mt.distributed.layouts import (
    ColumnWise,
    Grid,
    Hosts,
    Layout,
    LayoutName,
    RowWise,
    TableRowWise,
    kernel_of,
    layout_of,
    leaves_a_rank_empty,
    with_rows_for_all,
)
from torchrec_mt.errors import UserError, within
from torchrec_mt.schema import TABLE_PREFIX

_COMM_TYPES = {"float32": CommType.FP32, "float16": CommType.FP16, "bfloat16": CommType.BF16}


@dataclass(frozen=True, kw_only=True)
class CommunicationConfig:
    """What numbers of sharded tables travel as between ranks.

    Args:
        forward: what was looked up. backward: its gradients; bfloat16 has their range, float16 takes those below 6e-8
            for 0.
    """

    forward: Literal["float32", "float16", "bfloat16"] = "float32"
    backward: Literal["float32", "float16", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """How tables are laid out over ranks.

    Args:
        default: for tables not named in `tables`; where it would spread too few rows over the ranks, such a table is
            table-wise. `auto` lets the planner choose between table-wise, row-wise and, on several hosts,
            table-row-wise. `data_parallel` keeps the whole table on every rank: its lookup needs no communication, but
            its gradient is dense, is averaged over ranks every step, and updates every row. Right for small tables,
            whose rows a batch touches mostly anyway (categories); wrong for ids and tokens by the hundred thousand.
        tables: layout by table. A name alone takes that layout's defaults. communication: what travels between ranks.
        plan: a plan to follow instead of making one: a file that `torchrec-mt plan --output` wrote, or a run folder.
        reserve: share of the memory that the plan leaves to activations, kernels and the system.
        cache_share: share of a table's rows that the kernel `fused_uvm_caching` keeps in the device's memory.
    """

    default: LayoutName | Layout = "auto"
    tables: dict[str, LayoutName | Layout] = field(default_factory=dict)
    communication: CommunicationConfig = field(default_factory=CommunicationConfig)
    plan: str | None = None
    reserve: float = 0.15
    cache_share: float = 0.2

    def __post_init__(self) -> None:
        within(self, 0, 0.9, "reserve")
        within(self, 0.0001, 1, "cache_share")

    def of(self, table: str) -> Layout:
        """The layout of a table."""
        return layout_of(self.tables.get(table, self.default))


def too_few_rows(
    config: ShardingConfig, tables: Mapping[str, int], *, world_size: int, hosts: Hosts | None
) -> dict[str, Layout]:
    """Layouts of tables that `default` would spread over more ranks than their rows serve: a default is a wish.

    Args:
        tables: rows of each.
    """
    default = layout_of(config.default)
    unnamed = {table: rows for table, rows in tables.items() if table not in config.tables}
    taken = {
        table: with_rows_for_all(default, rows, world_size=world_size, hosts=hosts) for table, rows in unnamed.items()
    }
    return {table: layout for table, layout in taken.items() if layout != default}


def told_of_few_rows(config: ShardingConfig, tables: Mapping[str, int], *, world_size: int) -> list[str]:
    """The same for a person, a line a table."""
    wished = f"sharding.default = '{layout_of(config.default).kind}'"
    return [
        f"table {table}: {tables[table]:,} rows are too few for {wished} on {world_size} ranks: '{layout.kind}' it is"
        for table, layout in too_few_rows(config, tables, world_size=world_size, hosts=Hosts.of(world_size)).items()
    ]


def for_reading(
    config: ShardingConfig, tables: Mapping[str, int], *, device_type: str, world_size: int
) -> ShardingConfig:
    """The layouts for a trained model that is only read, on a machine that may be another than it was trained on.

    Every layout reads the same numbers, so what the present machine cannot have is left to `auto`.

    Args:
        tables: rows of each.
    """
    hosts = Hosts.of(world_size)

    def readable(layout: Layout, rows: int) -> Layout | LayoutName:
        if kernel_of(layout) not in ("fused", "dense") and device_type != "cuda":
            return "auto"
        match layout:
            case RowWise():
                return "auto" if leaves_a_rank_empty(rows, world_size) else layout
            case TableRowWise():
                fits = hosts and hosts.count > 1 and not leaves_a_rank_empty(rows, hosts.ranks)
                return layout if fits else "auto"
            case ColumnWise() | Grid():
                return "auto"
            case _:
                return layout

    layouts = {table: readable(config.of(table), rows) for table, rows in tables.items()}
    return ShardingConfig(tables=layouts, reserve=config.reserve, cache_share=config.cache_share)


class Sharder(EmbeddingBagCollectionSharder):
    """The default sharder, with all layouts also on CPU, where TorchRec does not offer them (results are equal)."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return ["table_wise", "row_wise", "data_parallel", "column_wise", "table_row_wise", "grid_shard"]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        if sharding_type == "data_parallel":
            return ["dense"]
        return ["fused", *(["fused_uvm", "fused_uvm_caching"] if compute_device_type == "cuda" else [])]


def make_sharder(communication: CommunicationConfig, device: torch.device) -> Sharder:
    """The sharder whose tables talk as the config says.

    Raises:
        UserError: bfloat16 on CPUs.
    """
    for key in ("forward", "backward"):
        if getattr(communication, key) == "bfloat16" and device.type == "cpu":
            raise UserError(
                f'sharding.communication.{key} = "bfloat16": between CPUs TorchRec sends float32 or float16: choose one'
            )
    config = QCommsConfig(
        forward_precision=_COMM_TYPES[communication.forward], backward_precision=_COMM_TYPES[communication.backward]
    )
    return Sharder(qcomm_codecs_registry=get_qcomm_codecs_registry(config, device=device))


def table_shapes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Rows and columns of each table of the unsharded model."""
    collections = [part for part in module.modules() if isinstance(part, EmbeddingBagCollection)]
    return {
        table.name.removeprefix(TABLE_PREFIX): (table.num_embeddings, table.embedding_dim)
        for collection in collections
        for table in collection.embedding_bag_configs()
    }


def describe_plan(plan: ShardingPlan | None) -> dict[str, Any]:
    """The plan as JSON: per table its sharding type, kernel, ranks, and shards as [row, column, rows, columns]."""
    if plan is None:
        return {}
    return {
        ".".join([*filter(None, [path]), table.removeprefix(TABLE_PREFIX)]): {
            "sharding_type": parameter.sharding_type,
            "compute_kernel": parameter.compute_kernel,
            "ranks": list(parameter.ranks or []),
            "shards": [
                [*shard.shard_offsets, *shard.shard_sizes]
                for shard in getattr(parameter.sharding_spec, "shards", None) or []
            ],
        }
        for path, module_plan in plan.plan.items()
        for table, parameter in module_plan.items()
    }
