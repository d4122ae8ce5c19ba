"""`make bench-plan`: our planner beside TorchRec's default one, each in a process of its own.

`seconds` are from the model on meta tensors to a plan of TorchRec, `process s` with the interpreter and all imports.
"with as little" is ours with no more memory than the fullest rank of TorchRec's plan takes. The same unlike tables
(rows, widths and lookups drawn), the same ways for every table (all that TorchRec's default sharder offers on GPUs),
the same imagined cluster. Prints a table, and as its last line one JSON object (see docs/benchmarks.md). TorchRec's
planner is not asked for 1,000 tables: for 200 it took two minutes.
"""

import json
import subprocess
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

CLUSTER, BATCH_ROWS, RESERVE = "2x8xA100-80GB", 1024, 0.15
COUNTS, DEFAULT_UP_TO = (10, 100, 1000), 100
MOST_ROWS = {10: 7.5, 100: 7.5, 1000: 7.0}
"""Decimal logarithm: a thousand tables of up to 3 * 10^7 rows would not fit."""


def ours(count: int, room_gib: float | None = None) -> dict[str, Any]:
    """Plans with this project, from nothing but shapes to a plan of TorchRec; with no more room than is said."""
    import numpy as np
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

    from tests.unit.distributed.plans.models import OfTables, all_allowed, random_tables
    from torchrec_mt.distributed.plans.clusters import parse_cluster
    from torchrec_mt.distributed.plans.estimates import enumerate_choices, sharding_plan, topology_of
    from torchrec_mt.distributed.plans.placement import Capacity
    from torchrec_mt.distributed.plans.search import search

    shapes, lookups = random_tables(count, 0, most_rows=MOST_ROWS[count])
    module, cluster, sharder = OfTables(shapes), parse_cluster(CLUSTER), EmbeddingBagCollectionSharder()
    topology, allowed, start = topology_of(cluster), all_allowed(default_ways(), lookups), time.perf_counter()
    tables = enumerate_choices(module, sharder, topology, allowed, batch_rows=BATCH_ROWS)
    ranks = cluster.world_size
    on_device, on_host = np.full(ranks, (1 - RESERVE) * cluster.device_bytes), np.full(ranks, float(cluster.host_bytes))
    if room_gib is not None:
        on_device = np.minimum(on_device, room_gib * 2**30)
    found = search(tables, Capacity(on_device, on_host, cluster.ranks_per_host))
    sharding_plan(module, topology, tables, found.placed)
    seconds = time.perf_counter() - start
    held = np.zeros(ranks)
    for choice, places in found.placed:
        np.add.at(held, list(places), choice.device_S)
    return {
        "seconds": seconds,
        "ms": found.busiest_ms,
        "bound_ms": found.bound_ms,
        "gib": held.max() / 2**30,
        "tried": found.tried,
    }


def theirs(count: int) -> dict[str, Any]:
    """Plans with TorchRec's planner and its own proposers."""
    import numpy as np
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation

    from tests.unit.distributed.plans.models import OfTables, random_tables
    from torchrec_mt.distributed.plans.clusters import parse_cluster
    from torchrec_mt.distributed.plans.estimates import topology_of
    from torchrec_mt.schema import TABLE_PREFIX

    shapes, lookups = random_tables(count, 0, most_rows=MOST_ROWS[count])
    module, cluster = OfTables(shapes), parse_cluster(CLUSTER)
    planner = EmbeddingShardingPlanner(
        topology=topology_of(cluster),
        batch_size=BATCH_ROWS,
        constraints={
            TABLE_PREFIX + str(n): ParameterConstraints(pooling_factors=[mean]) for n, mean in enumerate(lookups)
        },
        storage_reservation=FixedPercentageStorageReservation(RESERVE),
        debug=False,
    )
    start = time.perf_counter()
    planner.plan(module, [EmbeddingBagCollectionSharder()])
    seconds = time.perf_counter() - start
    best, held = planner._best_plan or [], np.zeros(cluster.world_size)
    for option in best:
        for shard in option.shards:
            held[shard.rank] += shard.storage.hbm
    return {
        "seconds": seconds,
        "ms": planner._perf_model.rate(best),
        "gib": held.max() / 2**30,
        "tried": planner._num_proposals,
    }


def default_ways() -> list[tuple[str, str]]:
    """What TorchRec's planner considers for a table where nothing is said."""
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner.enumerators import EmbeddingEnumerator

    from tests.unit.distributed.plans.models import OfTables
    from torchrec_mt.distributed.plans.clusters import parse_cluster
    from torchrec_mt.distributed.plans.estimates import topology_of

    one = EmbeddingEnumerator(topology_of(parse_cluster(CLUSTER)), BATCH_ROWS)
    options = one.enumerate(OfTables([(1000, 128)]), [EmbeddingBagCollectionSharder()])
    return list(dict.fromkeys((option.sharding_type, option.compute_kernel) for option in options))


def in_a_process(planner: str, *arguments: float) -> dict[str, Any]:
    """A planner's outcome, and the seconds of its process from start to end, imports and all."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.bench_plan", planner, *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1]) | {"process": time.perf_counter() - start}


def main() -> None:
    from importlib import import_module

    if len(sys.argv) > 1:
        from torchrec_mt.distributed.quiet import quiet_dependencies

        quiet_dependencies()
        import_module("torchrec")
        planner, count, *room = sys.argv[1:]
        found = theirs(int(count)) if planner == "theirs" else ours(int(count), *map(float, room))
        print(json.dumps(found))
        return
    table = Table("tables", "planner", box=None)
    for column in ("seconds", "process s", "busiest rank ms", "bound ms", "fullest rank GiB", "tried"):
        table.add_column(column, justify="right")
    results: dict[tuple[str, int], dict[str, Any]] = {}
    for count in COUNTS:
        results["ours", count] = in_a_process("ours", count)
        if count <= DEFAULT_UP_TO:
            other = results["TorchRec's", count] = in_a_process("theirs", count)
            # A hair more, as TorchRec counts an optimizer's sums in other roundings.
            results["ours, with as little", count] = in_a_process("ours", count, other["gib"] * 1.001)
    for (planner, count), found in results.items():
        bound = f"{found['bound_ms']:.3f}" if "bound_ms" in found else ""
        seconds = (f"{found['seconds']:.2f}", f"{found['process']:.1f}")
        cells = (f"{found['ms']:.3f}", bound, f"{found['gib']:.2f}", f"{found['tried']:,}")
        table.add_row(f"{count:,}", planner, *seconds, *cells)
    Console(width=120).print(table)
    print(json.dumps(ratios(results)))


def ratios(results: dict[tuple[str, int], dict[str, Any]]) -> dict[str, float]:
    """The machine-readable last line: seconds, and ours over TorchRec's."""

    def over(planner: str, count: int, what: str) -> float:
        return round(results[planner, count][what] / results["TorchRec's", count][what], 4)

    return {
        **{f"seconds_{count}": round(results["ours", count]["seconds"], 2) for count in COUNTS},
        **{f"process_seconds_{count}": round(results["ours", count]["process"], 2) for count in COUNTS},
        "speedup_100": round(1 / over("ours", 100, "seconds"), 2),
        **{f"plan_quality_{count}": over("ours", count, "ms") for count in (10, 100)},
        **{f"plan_memory_{count}": over("ours", count, "gib") for count in (10, 100)},
        **{f"plan_quality_{count}_same_memory": over("ours, with as little", count, "ms") for count in (10, 100)},
    }


if __name__ == "__main__":
    main()
