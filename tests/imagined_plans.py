"""Plan documents without a planner: tables laid by hand on an imagined cluster, with costs that can be told apart."""

from collections.abc import Sequence
from typing import Any

from torchrec_mt.distributed.plans.clusters import parse_cluster
from torchrec_mt.distributed.plans.plan import Plan, PlannedTable, rank_loads


def laid_table(name: str, rows: int, ranks: Sequence[int], *, dim: int = 16, host: bool = False) -> PlannedTable:
    """A float32 table in blocks of rows, one for each of the ranks; in the host's memory or on the devices."""
    block = -(-rows // len(ranks))
    sizes = [max(0, min(block, rows - at * block)) for at in range(len(ranks))]
    kinds = sorted(set(sizes))
    return PlannedTable(
        path="embeddings",
        name=name,
        rows=rows,
        dim=dim,
        dtype="float32",
        lookups=[2.0],
        sharding_type="row_wise" if len(ranks) > 1 else "table_wise",
        kernel="fused_uvm" if host else "fused",
        cache_share=None,
        shards=[
            [rank, at * block, 0, size, dim, kinds.index(size)]
            for at, (rank, size) in enumerate(zip(ranks, sizes, strict=True))
        ],
        costs=[block_cost(size, dim, host) for size in kinds],
    )


def block_cost(rows: int, columns: int, host: bool) -> dict[str, Any]:
    """Four bytes a number and a sum per row; times grow a little with the rows."""
    weights, sums = rows * columns * 4, rows * 4
    return {
        "weights": 0 if host else weights,
        "sums": 0 if host else sums,
        "buffers": 1 << 20,
        "host": weights + sums if host else 0,
        "forward_compute": 0.01 + rows * 1e-9,
        "forward_comms": 0.02,
        "backward_compute": 0.03 + rows * 2e-9,
        "backward_comms": 0.04,
        "prefetch": 0.005 if host else 0.0,
    }


def laid_plan(cluster: str, tables: Sequence[PlannedTable], **changes: Any) -> Plan:
    """The plan that has these tables, with a quarter of a GiB of towers a rank."""
    imagined = parse_cluster(cluster)
    known = {
        "model": "two towers",
        "torchrec": "1.8.0",
        "cluster": imagined.to_json(),
        "batch_rows": 4096,
        "reserve": 0.15,
        "optimizer": "rowwise_adagrad",
        "bound_ms": 0.05,
        "tables": list(tables),
        "ranks": rank_loads(tables, imagined, dense=1 << 28, reserve=0.15),
    }
    return Plan(**known | changes)
