"""The search beside all possible plans of small problems, and beside TorchRec's own planner."""

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation

from tests.unit.distributed.plans.models import OfTables, all_allowed, random_tables
from torchrec_mt.distributed.plans.choices import Choice, Cost, Spread, TableChoices
from torchrec_mt.distributed.plans.clusters import parse_cluster
from torchrec_mt.distributed.plans.estimates import enumerate_choices, topology_of
from torchrec_mt.distributed.plans.placement import Capacity, Placement
from torchrec_mt.distributed.plans.search import DoesNotFitError, Found, search
from torchrec_mt.schema import TABLE_PREFIX


def choice(kind: str, spread: Spread, ms: list[float], device: list[float], host: list[float] | None = None) -> Choice:
    """A way whose shards take what is said."""
    host = host or [0.0] * len(ms)
    costs = tuple(Cost(int(d), 0, 0, int(h), m, 0.0, 0.0, 0.0, 0.0) for m, d, h in zip(ms, device, host, strict=True))
    return Choice(
        sharding_type=kind,
        kernel="fused",
        spread=spread,
        shards=tuple((0, 0, 1, 1) for _ in ms),
        costs=costs,
        cost_of=tuple(range(len(ms))),
        cache_share=None,
        ms_S=np.array(ms),
        device_S=np.array(device),
        host_S=np.array(host),
    )


def table(number: int, *choices: Choice) -> TableChoices:
    return TableChoices("", str(number), 1, 1, "float32", (1.0,), choices)


def drawn(seed: int, ranks: int, count: int) -> list[TableChoices]:
    """Tables that lie whole on a rank, in halves on any two, or in equal parts on all."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        ms, size = draw.uniform(1, 10), draw.uniform(1, 10)
        even = [ms * draw.uniform(1, 1.6) / ranks] * ranks
        found.append(
            table(
                number,
                choice("table_wise", "rank", [ms], [size]),
                choice("column_wise", "rank", [ms * 0.6] * 2, [size / 2] * 2),
                choice("row_wise", "ranks", even, [size / ranks] * ranks),
            )
        )
    return found


def capacity(ranks: int, device: float, host: float = 0.0, per_host: int | None = None) -> Capacity:
    return Capacity(np.full(ranks, device), np.full(ranks, host), per_host or ranks)


def best_of_all(tables: list[TableChoices], ranks: int, device: float) -> float:
    """The busiest rank's milliseconds of the best plan, by trying all."""

    def places(one: Choice) -> list[tuple[int, ...]]:
        if one.spread == "ranks":
            return [tuple(range(ranks))]
        return list(itertools.product(range(ranks), repeat=len(one.shards)))

    every = [[(one, place) for one in t.choices for place in places(one)] for t in tables]
    best = np.inf
    for plan in itertools.product(*every):
        ms, held = np.zeros(ranks), np.zeros(ranks)
        for one, place in plan:
            np.add.at(ms, list(place), one.ms_S)
            np.add.at(held, list(place), one.device_S)
        if held.max() <= device:
            best = min(best, float(ms.max()))
    return best


def check(tables: list[TableChoices], room: Capacity, found: Found) -> None:
    """The plan is one, it fits, and takes what it says."""
    ms, device, host = (np.zeros(len(room.device_W)) for _ in range(3))
    for one, (way, ranks) in zip(tables, found.placed, strict=True):
        assert any(way is allowed for allowed in one.choices)
        np.add.at(ms, list(ranks), way.ms_S)
        np.add.at(device, list(ranks), way.device_S)
        np.add.at(host, list(ranks), way.host_S)
        per_host = room.ranks_per_host
        if way.spread == "ranks":
            assert list(ranks) == list(range(len(ms)))
        if way.spread == "host":
            assert len({rank // per_host for rank in ranks}) == 1
        if way.spread == "hosts":
            blocks = [ranks[i : i + per_host] for i in range(0, len(ranks), per_host)]
            assert all(block == tuple(range(block[0], block[0] + per_host)) for block in blocks)
            assert len({block[0] for block in blocks}) == len(blocks)
    assert (device <= room.device_W + 1e-6).all()
    assert (host <= room.host_W + 1e-6).all()
    assert found.busiest_ms == pytest.approx(ms.max())
    assert found.bound_ms <= found.busiest_ms * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("device", [30.0, 11.0])
def test_is_near_the_best_of_all_plans(seed: int, device: float) -> None:
    tables = drawn(seed, 2, 4)
    room, best = capacity(2, device), best_of_all(tables, 2, device)
    if best == np.inf:
        with pytest.raises(DoesNotFitError):
            search(tables, room)
        return
    found = search(tables, room)
    check(tables, room, found)
    assert found.busiest_ms <= 1.02 * 1.02 * best


def test_hosts_and_their_memory() -> None:
    tables = [
        table(0, choice("table_row_wise", "host", [2.0, 2.0], [4.0, 4.0])),
        table(1, choice("table_row_wise", "host", [1.0, 1.0], [4.0, 4.0])),
        table(2, choice("grid_shard", "hosts", [0.5] * 4, [1.0] * 4)),
        table(3, choice("table_column_wise", "host", [0.1, 0.1, 0.1], [0.5] * 3)),
        table(4, choice("table_wise", "rank", [9.0], [9.0]), choice("table_wise", "rank", [20.0], [0.0], [6.0])),
    ]
    room = capacity(4, 7.0, 6.0, per_host=2)
    found = search(tables, room)
    check(tables, room, found)
    assert found.placed[4][0].host_S[0] == 6.0, "its memory is on the host, as the device has too little"


def test_the_same_tables_give_the_same_plan() -> None:
    tables, room = drawn(5, 8, 40), capacity(8, 100.0)
    first, second = search(tables, room), search(tables, room)
    assert [ranks for _, ranks in first.placed] == [ranks for _, ranks in second.placed]


def test_memory_is_evened_out_where_time_allows() -> None:
    """Two large idle tables and two small busy ones: both large ones on a rank would cost no time."""
    large, small = (
        [choice("table_wise", "rank", [ms], [size]) for _ in range(2)] for ms, size in ((0.001, 10.0), (5.0, 1.0))
    )
    tables = [table(number, way) for number, way in enumerate([*small, *large])]
    found = search(tables, capacity(2, 100.0))
    held = np.zeros(2)
    for way, ranks in found.placed:
        held[list(ranks)] += way.device_S
    assert held.tolist() == [11.0, 11.0]


def test_an_interrupt_keeps_the_best_plan_so_far() -> None:
    calls = 0

    def interrupt(tried: int, ms: float) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt

    tables, room = drawn(3, 8, 60), capacity(8, 100.0)
    found = search(tables, room, progress=interrupt)
    assert found.interrupted
    check(tables, room, found)


def test_an_interrupt_while_a_table_is_taken_away_leaves_nothing_that_seems_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = drawn(3, 2, 10)
    plan = Placement(tables, capacity(2, 100.0))
    for number, table in enumerate(tables):
        best = plan.best(table.choices)
        assert best is not None
        plan.put(number, *best)

    def interrupt(*values: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "subtract", SimpleNamespace(at=interrupt))
    with pytest.raises(KeyboardInterrupt):
        plan.take(0)
    assert not plan.complete


@pytest.mark.parametrize(
    ("count", "spec", "seed"), [(6, "2x4xA100-40GB", 1), (12, "2x8xA100-80GB", 2), (20, "1x8xL4-24GB", 3)]
)
def test_is_at_least_as_good_as_torchrecs_planner(count: int, spec: str, seed: int) -> None:
    """Of the same ways: the busiest rank's time by TorchRec's own measure, which is what both minimise."""
    shapes, lookups = random_tables(count, seed, most_rows=6.5)
    module, cluster, sharder = OfTables(shapes), parse_cluster(spec), EmbeddingBagCollectionSharder()
    topology = topology_of(cluster)
    limits = {TABLE_PREFIX + str(n): ParameterConstraints(pooling_factors=[mean]) for n, mean in enumerate(lookups)}
    options = EmbeddingEnumerator(topology, 512, constraints=limits).enumerate(module, [sharder])
    ways = dict.fromkeys((option.sharding_type, option.compute_kernel) for option in options)
    tables = enumerate_choices(module, sharder, topology, all_allowed(list(ways), lookups), batch_rows=512)
    ranks = cluster.world_size
    room = Capacity(
        np.full(ranks, 0.85 * cluster.device_bytes), np.full(ranks, float(cluster.host_bytes)), cluster.ranks_per_host
    )
    found = search(tables, room)
    check(tables, room, found)
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=512,
        constraints=limits,
        storage_reservation=FixedPercentageStorageReservation(0.15),
        debug=False,
    )
    planner.plan(module, [sharder])
    assert planner._best_plan is not None
    theirs = planner._perf_model.rate(planner._best_plan)
    assert found.busiest_ms <= theirs * 1.02  # what less memory may cost
