"""Single changes that may make tables fit, as ladders from the least of a kind to the greatest; fixes.py plans them.

A change is what a user types: this module knows the names of the config's keys, not the config.
"""

from itertools import accumulate
from typing import Literal

from torchrec_mt.distributed.layouts import DataParallel
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.plans.clusters import resized
from torchrec_mt.distributed.plans.ladders import Change, Ladder, ladder, largest, one
from torchrec_mt.distributed.plans.layout_changes import kernels, layouts
from torchrec_mt.distributed.plans.stuck import Stuck, StuckTable
from torchrec_mt.distributed.table_optimizers import Adagrad, RowWiseAdagrad, Sgd

Kind = Literal["layout", "reserve", "ranks", "dtype", "optimizer", "kernel", "dim", "rows", "batch"]

_HOSTS = 1024
_LEAST_ROWS = 0.01
"""Share of a table's rows below which fewer rows are no remedy."""


def kinds_of_change(stuck: Stuck) -> list[tuple[Kind, list[Ladder]]]:
    """All changes to try, the least harmful kind first. Of each entry's ladders the first with a rung that fits gives
    the fix."""
    return [
        ("layout", layouts(stuck)),
        ("reserve", [_reserves(stuck)]),
        ("ranks", [_ranks(stuck)]),
        ("dtype", _dtypes(stuck)),
        ("optimizer", _optimizers(stuck)),
        ("kernel", kernels(stuck, "fused_uvm_caching")),
        ("kernel", kernels(stuck, "fused_uvm")),
        ("dim", [_dims(stuck, table) for table in stuck.suspects()]),
        ("rows", [_rows(stuck, table) for table in stuck.suspects()]),
        ("batch", [_batches(stuck)]),
    ]


def _reserves(stuck: Stuck) -> Ladder:
    """A smaller reserve, but not below the default, in hundredths."""
    now, usual = (round(100 * sharding.reserve) for sharding in (stuck.problem.sharding, ShardingConfig()))
    cluster = stuck.problem.cluster
    needed = stuck.size / stuck.world_size + stuck.problem.dense_bytes()
    most = 100 * (1 - needed / (cluster.device_bytes or cluster.host_bytes))

    def at(percent: int) -> Change:
        return Change(
            says=f"reserve of {percent}% in place of {now}%", overrides=(f"sharding.reserve={percent / 100:g}",)
        )

    return ladder(range(now - 1, usual - 1, -1), at, guess=lambda percent: percent <= most)


def _ranks(stuck: Stuck) -> Ladder:
    """More ranks on the hosts until these are whole, then more hosts."""
    cluster = stuck.problem.cluster
    whole = max(cluster.ranks_per_host, cluster.device.ranks_per_host)
    sizes = [(cluster.hosts, ranks) for ranks in range(cluster.ranks_per_host + 1, whole + 1)]
    sizes += [(hosts, whole) for hosts in range(cluster.hosts + 1, _HOSTS + 1)]

    def at(size: tuple[int, int]) -> Change:
        hosts, ranks = size
        return Change(
            says=f"{hosts * ranks:,} ranks in place of {stuck.world_size:,}: {_count(hosts, 'host')} of {ranks}",
            cluster=resized(stuck.cluster, hosts=hosts, ranks_per_host=ranks),
        )

    return ladder(
        sizes if stuck.helped_by_ranks else [],
        at,
        guess=lambda size: size[0] * size[1] * stuck.room >= stuck.size,
        steady=False,  # buffers grow with the ranks
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _dtypes(stuck: Stuck) -> list[Ladder]:
    """One table in half precision; several."""

    def may(table: StuckTable) -> bool:
        return not table.half and not isinstance(table.layout, DataParallel)

    def key(table: StuckTable) -> str:
        return f"dataset.tables.{table.declared}.dtype=float16"

    def at(table: StuckTable) -> Change:
        return Change(says=f"table '{table.declared}' in float16", overrides=(key(table),))

    full = [table for table in stuck.tables if may(table)]
    saved = list(accumulate(2 * table.rows * table.dim for table in full))
    several = largest(full, "in float16", key, guess=lambda count: saved[count - 1] >= stuck.excess)
    return [*(one(at(table)) for table in stuck.suspects(may)), several]


def _optimizers(stuck: Stuck) -> list[Ladder]:
    """One sum a row in place of one an entry; none."""
    now = stuck.problem.optimizer
    match now:
        case Adagrad():
            kinds = ["rowwise_adagrad", "sgd"]
        case RowWiseAdagrad():
            kinds = ["sgd"]
        case Sgd():
            kinds = []

    def at(kind: str) -> Change:
        return Change(says=f"tables by {kind} in place of {now.kind}", overrides=(f"optim.tables.kind={kind}",))

    return [one(at(kind)) for kind in kinds]


def _dims(stuck: Stuck, table: StuckTable) -> Ladder:
    """A narrower table, by multiples of 4 in each block of columns."""
    step = 4 * table.columns

    def at(dim: int) -> Change:
        return Change(
            says=f"table '{table.declared}' of width {dim} in place of {table.dim}",
            overrides=(f"dataset.tables.{table.declared}.dim={dim}",),
        )

    narrower = range((table.dim - 1) // step * step, 0, -step)
    return ladder(narrower, at, guess=lambda dim: dim <= table.dim * stuck.share(table))


def _rows(stuck: Stuck, table: StuckTable) -> Ladder:
    """Fewer rows, in numbers of two digits."""

    def at(rows: int) -> Change:
        return Change(
            says=f"table '{table.declared}' of {rows:,} rows in place of {table.rows:,}",
            overrides=(f"plan.tables.{table.declared}.rows={rows}",),
        )

    return ladder(two_digits(table.rows), at, guess=lambda rows: rows <= table.rows * stuck.share(table))


def two_digits(count: int) -> list[int]:
    """Whole numbers of two digits and zeros that are less than `count` and at least a hundredth of it, falling."""
    powers = [10**power for power in range(max(0, len(str(count)) - 2), -1, -1)]
    numbers = [digits * power for power in powers for digits in range(99, 9, -1)]
    return [number for number in numbers if _LEAST_ROWS * count <= number < count]


def _batches(stuck: Stuck) -> Ladder:
    """Smaller batches, in 64 to 128 steps. Where even the smallest does not fit, batches are not the reason."""
    step = 1 << max(0, stuck.batch_size.bit_length() - 7)
    share = (stuck.room - stuck.piece.weights - stuck.piece.sums) / max(1, stuck.piece.buffers)

    def at(size: int) -> Change:
        return Change(
            says=f"batches of {size:,} pairs in place of {stuck.batch_size:,}",
            overrides=(f"reader.batch_size={size}",),
        )

    smaller = range((stuck.batch_size - 1) // step * step, 0, -step)
    return ladder(smaller, at, guess=lambda size: size <= share * stuck.batch_size)
