"""Estimates made once per distinct shard are TorchRec's own; where they differ, TorchRec's are known to be wrong."""

import math

import pytest
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator

from tests.unit.distributed.plans.models import OfTables, all_allowed, random_tables
from torchrec_mt.distributed.planning import Sharder
from torchrec_mt.distributed.plans.clusters import parse_cluster
from torchrec_mt.distributed.plans.estimates import enumerate_choices, sharding_plan, topology_of
from torchrec_mt.distributed.table_optimizers import Adagrad, RowWiseAdagrad, Sgd, TableOptimizer
from torchrec_mt.schema import TABLE_PREFIX

GPU_TYPES = ["table_wise", "row_wise", "column_wise", "table_row_wise", "table_column_wise", "grid_shard"]
KERNELS = ["fused", "fused_uvm", "fused_uvm_caching"]


def ways(kind: str) -> list[tuple[str, str]]:
    kernels = KERNELS if kind == "cuda" else ["fused"]
    types = [name for name in GPU_TYPES if kind == "cuda" or name != "table_column_wise"]
    return [("data_parallel", "dense"), *((name, kernel) for name in types for kernel in kernels)]


class Every(EmbeddingBagCollectionSharder):
    """All types and kernels on every device."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return ["data_parallel", *GPU_TYPES]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [kernel for name, kernel in ways(compute_device_type) if name == sharding_type]


@pytest.mark.parametrize("spec", ["1x2xCPU", "3x2xCPU", "2x8xA100-80GB", "1x8xL4-24GB"])
def test_equals_the_planners_own_enumeration(spec: str) -> None:
    cluster, sharder = parse_cluster(spec), Every()
    topology, kind = topology_of(cluster), cluster.device.kind
    shapes, lookups = random_tables(4, 1, most_rows=6)
    shapes, lookups = [*shapes, (7, 64), shapes[0]], [*lookups, 2.0, lookups[0]]
    module, here = OfTables(shapes), ways(kind)
    if cluster.hosts == 1 and kind == "cpu":
        here = [way for way in here if way[0] not in ("table_row_wise", "grid_shard")]
    tables = enumerate_choices(module, sharder, topology, all_allowed(here, lookups), batch_rows=512)
    here_types = list(dict.fromkeys(name for name, _ in here))
    theirs = EmbeddingEnumerator(
        topology,
        512,
        constraints={
            TABLE_PREFIX + str(n): ParameterConstraints(pooling_factors=[mean], sharding_types=here_types)
            for n, mean in enumerate(lookups)
        },
    ).enumerate(module, [sharder])
    found = {(option.name, option.sharding_type, option.compute_kernel): option for option in theirs}
    compared = 0
    for table in tables:
        for choice in table.choices:
            option = found[table.name, choice.sharding_type, choice.kernel]
            assert [(*shard.offset, *shard.size) for shard in option.shards] == list(choice.shards)
            for shard, cost in zip(option.shards, (choice.costs[i] for i in choice.cost_of), strict=True):
                assert shard.perf is not None
                assert cost.ms == pytest.approx(shard.perf.total, rel=1e-12)
                compared += 1
                if choice.kernel == "fused" and choice.sharding_type in ("table_wise", "row_wise", "table_row_wise"):
                    assert shard.storage is not None
                    assert cost.device + cost.host == shard.storage.hbm + shard.storage.ddr
    assert compared == sum(len(option.shards) for option in theirs)


@pytest.mark.parametrize(
    ("optimizer", "per_entry", "per_row"), [(Adagrad(), 4, 0), (RowWiseAdagrad(), 0, 4), (Sgd(), 0, 0)]
)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("way", ["table_wise", "row_wise", "column_wise", "data_parallel"])
def test_sums_are_counted(optimizer: TableOptimizer, per_entry: int, per_row: int, half: bool, way: str) -> None:
    """TorchRec takes sums of a float16 table for float16, and one of a row for all its column blocks together."""
    module, topology = OfTables([(1000, 256)], optimizer, half=half), topology_of(parse_cluster("1x4xCPU"))
    kernel = "dense" if way == "data_parallel" else "fused"
    (table,) = enumerate_choices(module, Sharder(), topology, all_allowed([(way, kernel)], [3.0]), batch_rows=64)
    (choice,) = table.choices
    for (_, _, rows, columns), i in zip(choice.shards, choice.cost_of, strict=True):
        cost = choice.costs[i]
        assert cost.weights == rows * columns * (2 if half else 4)
        assert cost.sums == rows * columns * per_entry + rows * per_row


def test_tables_beyond_the_device_are_counted_on_the_host() -> None:
    topology = topology_of(parse_cluster("1x1xH100-80GB"))
    allowed = all_allowed([("table_wise", "fused_uvm"), ("table_wise", "fused_uvm_caching")], [3.0])
    (table,) = enumerate_choices(OfTables([(10**6, 64)]), Sharder(), topology, allowed, batch_rows=64)
    uvm, cached = (choice.costs[0] for choice in table.choices)
    assert (uvm.weights, uvm.host) == (0, 10**6 * (64 * 4 + 4))
    assert (cached.weights, cached.host) == (math.ceil(0.2 * 10**6 * 64 * 4), 10**6 * (64 * 4 + 4))


def test_becomes_a_plan_of_torchrec() -> None:
    module, topology = OfTables([(100, 16), (10, 16)]), topology_of(parse_cluster("1x2xCPU"))
    allowed = all_allowed([("row_wise", "fused")], [1.0, 1.0])
    tables = enumerate_choices(module, Sharder(), topology, allowed, batch_rows=4)
    plan = sharding_plan(module, topology, tables, [(table.choices[0], (0, 1)) for table in tables])
    sharding = plan.plan["collection"][f"{TABLE_PREFIX}0"]
    assert (sharding.sharding_type, sharding.compute_kernel, sharding.ranks) == ("row_wise", "fused", [0, 1])
    assert [shard.shard_sizes for shard in sharding.sharding_spec.shards] == [[50, 16], [50, 16]]
    assert {str(shard.placement) for shard in sharding.sharding_spec.shards} == {"rank:0/cpu", "rank:1/cpu"}
