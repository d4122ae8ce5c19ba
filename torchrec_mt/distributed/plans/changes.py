"""Single changes that may make tables fit, as ladders from the least of a kind to the greatest; fixes.py plans them.

A change is what a user types: this module knows the names of the config's keys, not the config.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, TypeVar

from torchrec_mt.distributed.layouts import Auto, DataParallel, Kernel, Layout, RowWise, kernel_of, layout_of
from torchrec_mt.distributed.planning import ShardingConfig
from torchrec_mt.distributed.plans.choices import CACHE_SHARE
from torchrec_mt.distributed.plans.clusters import resized
from torchrec_mt.distributed.plans.stuck import Stuck, StuckTable, WithKernel
from torchrec_mt.distributed.table_optimizers import Adagrad, RowWiseAdagrad, Sgd

Kind = Literal["layout", "reserve", "ranks", "dtype", "optimizer", "kernel", "dim", "rows", "batch"]
T = TypeVar("T")

_HOSTS = 1024
_SMALL_CACHE = 0.02
_LEAST_ROWS = 0.01
"""Share of a table's rows below which fewer rows are no remedy."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change, in words and as a user types it.

    Args:
        overrides: KEY=VALUE, for `--set`. cluster: for `--cluster`; None leaves it.
    """

    says: str
    overrides: tuple[str, ...] = ()
    cluster: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Changes, the least first.

    Args:
        rungs: how many. at: the change of a rung. guess: the rung from which to search.
        steady: where the last rung does not fit, none does.
    """

    rungs: int
    at: Callable[[int], Change]
    guess: int = 0
    steady: bool = True


def kinds_of_change(stuck: Stuck) -> list[tuple[Kind, list[Ladder]]]:
    """All changes to try, the least harmful kind first. Of each entry's ladders the first with a rung that fits gives
    the fix."""
    return [
        ("layout", _layouts(stuck)),
        ("reserve", [_reserves(stuck)]),
        ("ranks", [_ranks(stuck)]),
        ("dtype", _dtypes(stuck)),
        ("optimizer", _optimizers(stuck)),
        ("kernel", _kernels(stuck, "fused_uvm_caching")),
        ("kernel", _kernels(stuck, "fused_uvm")),
        ("dim", [_dims(stuck, table) for table in stuck.suspects()]),
        ("rows", [_rows(stuck, table) for table in stuck.suspects()]),
        ("batch", [_batches(stuck)]),
    ]


def _ladder(
    values: Sequence[T],
    at: Callable[[T], Change],
    *,
    guess: Callable[[T], bool] = lambda value: True,
    steady: bool = True,
) -> Ladder:
    """A ladder of values.

    Args:
        guess: whether a value may be the one; the first that may is where the search begins.
    """
    first = next((rung for rung, value in enumerate(values) if guess(value)), len(values) - 1)
    return Ladder(rungs=len(values), at=lambda rung: at(values[rung]), guess=first, steady=steady)


def _one(change: Change) -> Ladder:
    return Ladder(rungs=1, at=lambda rung: change)


def _layouts(stuck: Stuck) -> list[Ladder]:
    """One table released; all that the default pins; several."""
    pinned = [table for table in stuck.tables if not isinstance(table.layout, Auto)]
    ladders = [
        _one(_laid(table, layout))
        for table in stuck.suspects(lambda one: not isinstance(one.layout, Auto))
        for layout in _released(table)
    ]
    by_default = [table for table in pinned if table.name not in stuck.problem.sharding.tables]
    if len(by_default) > 1:
        says = (
            f"auto in place of {by_default[0].layout.kind} for the {len(by_default)} tables that sharding.default lays"
        )
        ladders.append(_one(Change(says=says, overrides=("sharding.default=auto",))))
    return [*ladders, _largest(pinned, "by auto", lambda table: f"sharding.tables.{table.name}=auto")]


def _released(table: StuckTable) -> list[Layout]:
    """What a pinned table may do instead; `auto` knows no kernels of the host's memory."""
    ways: list[Layout] = [Auto(kind="auto")]
    if isinstance(table.layout, WithKernel) and not table.on_device and not isinstance(table.layout, RowWise):
        ways.append(RowWise(kind="row_wise", kernel=table.layout.kernel))
    return ways


def _laid(table: StuckTable, layout: Layout) -> Change:
    return Change(
        says=f"table '{table.name}' {_words(layout)} in place of {_words(table.layout)}",
        overrides=(f"sharding.tables.{table.name}={_text(layout)}",),
    )


def _words(layout: Layout) -> str:
    return layout.kind + (f" ({kernel_of(layout)})" if kernel_of(layout).startswith("fused_uvm") else "")


def _text(layout: Layout) -> str:
    """A layout as TOML."""
    if layout == layout_of(layout.kind):
        return layout.kind
    keys = {"kind": layout.kind} | asdict(layout)
    return "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in keys.items()) + " }"


def _largest(tables: Sequence[StuckTable], what: str, key: Callable[[StuckTable], str]) -> Ladder:
    """The two largest tables changed alike, the three largest, ... all."""

    def at(count: int) -> Change:
        which = ", ".join(f"'{table.name}'" for table in tables[:count]) if count <= 3 else f"the {count} largest"
        return Change(says=f"tables {which} {what}", overrides=tuple(key(table) for table in tables[:count]))

    return _ladder(range(2, len(tables) + 1), at)


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

    return _ladder(range(now - 1, usual - 1, -1), at, guess=lambda percent: percent <= most)


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

    return _ladder(
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
        return f"dataset.tables.{table.name}.dtype=float16"

    def at(table: StuckTable) -> Change:
        return Change(says=f"table '{table.name}' in float16", overrides=(key(table),))

    several = _largest([table for table in stuck.tables if may(table)], "in float16", key)
    return [*(_one(at(table)) for table in stuck.suspects(may)), several]


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

    return [_one(at(kind)) for kind in kinds]


def _kernels(stuck: Stuck, kernel: Kernel) -> list[Ladder]:
    """One table in the host's memory: with a cache on the GPU, of the usual size or a small one; or without."""
    has = (kernel,) if kernel == "fused_uvm" else ("fused_uvm",)
    tables = stuck.suspects(lambda table: kernel_of(table.layout) not in has)
    on_cpu = stuck.problem.cluster.device.kind == "cpu"
    return [] if on_cpu else [_on_host(stuck, table, kernel) for table in tables]


def _on_host(stuck: Stuck, table: StuckTable, kernel: Kernel) -> Ladder:
    layout, now = stuck.movable(table), stuck.problem.sharding.cache_share
    override = f"sharding.tables.{table.name}={_text(replace(layout, kernel=kernel))}"
    says = f"table '{table.name}' in the host's memory, {layout.kind}"
    if kernel == "fused_uvm":
        return _one(Change(says=f"{says}, no cache", overrides=(override,)))
    same = kernel_of(table.layout) == kernel
    shares = [
        share for share in dict.fromkeys((min(now, CACHE_SHARE), _SMALL_CACHE)) if share <= now - (1e-9 if same else 0)
    ]

    def at(share: float) -> Change:
        smaller = () if share == now else (f"sharding.cache_share={share:g}",)
        return Change(says=f"{says}, {share:.0%} of the rows cached on the GPU", overrides=(override, *smaller))

    return _ladder(shares, at, steady=False)


def _dims(stuck: Stuck, table: StuckTable) -> Ladder:
    """A narrower table, by multiples of 4 in each block of columns."""
    step = 4 * table.columns

    def at(dim: int) -> Change:
        return Change(
            says=f"table '{table.name}' of width {dim} in place of {table.dim}",
            overrides=(f"dataset.tables.{table.name}.dim={dim}",),
        )

    narrower = range((table.dim - 1) // step * step, 0, -step)
    return _ladder(narrower, at, guess=lambda dim: dim <= table.dim * stuck.share(table))


def _rows(stuck: Stuck, table: StuckTable) -> Ladder:
    """Fewer rows, in numbers of two digits."""

    def at(rows: int) -> Change:
        return Change(
            says=f"table '{table.name}' of {rows:,} rows in place of {table.rows:,}",
            overrides=(f"plan.tables.{table.name}.rows={rows}",),
        )

    return _ladder(two_digits(table.rows), at, guess=lambda rows: rows <= table.rows * stuck.share(table))


def two_digits(count: int) -> list[int]:
    """Whole numbers of two digits and zeros that are less than `count` and at least a hundredth of it, falling."""
    powers = [10**power for power in range(max(0, len(str(count)) - 2), -1, -1)]
    numbers = [digits * power for power in powers for digits in range(99, 9, -1)]
    return [number for number in numbers if _LEAST_ROWS * count <= number < count]


def _batches(stuck: Stuck) -> Ladder:
    """Smaller batches, in 64 to 128 steps. Where even the smallest does not fit, batches are not the reason."""
    step = max(1, 1 << stuck.batch_size.bit_length() - 7)
    share = (stuck.room - stuck.piece.weights - stuck.piece.sums) / max(1, stuck.piece.buffers)

    def at(size: int) -> Change:
        return Change(
            says=f"batches of {size:,} pairs in place of {stuck.batch_size:,}",
            overrides=(f"reader.batch_size={size}",),
        )

    smaller = range((stuck.batch_size - 1) // step * step, 0, -step)
    return _ladder(smaller, at, guess=lambda size: size <= share * stuck.batch_size)
