"""A pinned plan: the places that it names for the tables of a model, or why they cannot be had here."""

from collections.abc import Sequence

import numpy as np

from torchrec_mt.distributed.layouts import Hosts
from torchrec_mt.distributed.plans.choices import Choice, TableChoices
from torchrec_mt.distributed.plans.clusters import GIB
from torchrec_mt.distributed.plans.placement import Capacity, Placement
from torchrec_mt.distributed.plans.plan import Plan, PlannedTable
from torchrec_mt.distributed.plans.search import Found, bound_of
from torchrec_mt.errors import UserError
from torchrec_mt.schema import TABLE_PREFIX


def follow(pinned: Plan, tables: Sequence[TableChoices], hosts: Hosts, capacity: Capacity) -> Found:
    """The places that a plan names, its times as these choices have them.

    Raises:
        UserError: it is of other tables or ranks, lays a table as the config does not allow or as no table can lie,
            or does not fit (exit code 3).
    """
    where, theirs = f"the plan for {pinned.label}", pinned.cluster
    if (theirs["hosts"], theirs["ranks_per_host"]) != (hosts.count, hosts.ranks):
        raise UserError(
            f"{where} is pinned, and here {hosts.count * hosts.ranks} rank(s) are on {hosts.count} host(s): plan again "
            f"for {hosts.count}x{hosts.ranks}, or leave sharding.plan out"
        )
    by_name, plan = {table.name: table for table in pinned.tables}, Placement(tables, capacity)
    for number, table in enumerate(tables):
        name = table.name.removeprefix(TABLE_PREFIX)
        planned = by_name.pop(name, None)
        if planned is None or (planned.rows, planned.dim, planned.dtype) != (table.rows, table.dim, table.dtype):
            has = "does not have it" if planned is None else f"has {planned.rows:,} x {planned.dim} {planned.dtype}"
            raise UserError(f"table '{name}' has {table.rows:,} x {table.dim} {table.dtype}, {where} {has}: plan again")
        choice, ranks = _choice(where, planned, table), np.array([shard[0] for shard in planned.shards])
        if not _is_place(choice, ranks, hosts):
            raise UserError(
                f"{where} lays table '{name}' {choice.sharding_type} on ranks {ranks.tolist()}, where it cannot lie "
                "so: plan again"
            )
        plan.put(number, choice, ranks)
    if by_name:
        raise UserError(f"{where} has tables that the model lacks: {sorted(by_name)}: plan again")
    _check_fits(where, plan, capacity)
    return Found.of(plan, bound_of(tables, capacity))


def _choice(where: str, planned: PlannedTable, table: TableChoices) -> Choice:
    """The table's way that the plan names."""
    ways = {(choice.sharding_type, choice.kernel): choice for choice in table.choices}
    choice = ways.get((planned.sharding_type, planned.kernel))
    if choice is None:
        allowed = ", ".join(f"{kind} ({kernel})" for kind, kernel in ways)
        raise UserError(
            f"{where} lays table '{planned.name}' {planned.sharding_type} ({planned.kernel}), and here it may be "
            f"{allowed}: set sharding.tables, or plan again"
        )
    if choice.shards != tuple(tuple(shard[1:5]) for shard in planned.shards):
        raise UserError(
            f"{where} cuts table '{planned.name}' into {len(planned.shards)} other pieces than the config does "
            f"({len(choice.shards)}): set sharding.tables, or plan again"
        )
    if choice.cache_share != planned.cache_share:
        raise UserError(
            f"{where} caches {planned.cache_share} of table '{planned.name}', the config {choice.cache_share}: set "
            "sharding.cache_share, or plan again"
        )
    return choice


def _is_place(choice: Choice, ranks_S: np.ndarray, hosts: Hosts) -> bool:
    """Whether shards of its kind may lie on these ranks, in this order."""
    match choice.spread:
        case "rank":
            return True
        case "ranks":
            return bool(np.array_equal(ranks_S, np.arange(hosts.count * hosts.ranks)))
        case "host" | "hosts":
            first_B = ranks_S[:: hosts.ranks]
            whole_BR = first_B[:, None] + np.arange(hosts.ranks)
            return (
                bool(np.array_equal(ranks_S, whole_BR.ravel()))
                and not (first_B % hosts.ranks).any()
                and len(set(first_B.tolist())) == len(first_B)
            )


def _check_fits(where: str, plan: Placement, capacity: Capacity) -> None:
    for what, room_W, left_W in (
        ("memory", capacity.device_W, plan.device_W),
        ("the host's memory", capacity.host_W, plan.host_W),
    ):
        rank = int(left_W.argmin())
        if left_W[rank] < 0:
            raise UserError(
                f"{where} does not fit: rank {rank} would hold {(room_W[rank] - left_W[rank]) / GIB:,.2f} GiB of "
                f"tables, and has {room_W[rank] / GIB:,.2f} GiB of {what} for them: plan again, or lower "
                "sharding.reserve or reader.batch_size",
                exit_code=3,
            )
