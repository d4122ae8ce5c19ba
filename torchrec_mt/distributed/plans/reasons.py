"""Why tables do not fit: which table, how many bytes, on what. One message for planner.py."""

from collections.abc import Sequence
from dataclasses import dataclass

from torchrec_mt.distributed.plans.choices import Choice, Cost, TableChoices
from torchrec_mt.distributed.plans.clusters import GIB, Cluster
from torchrec_mt.distributed.plans.placement import Capacity
from torchrec_mt.schema import TABLE_PREFIX


@dataclass(frozen=True, kw_only=True)
class Refused:
    """What a search could not place.

    Args:
        table: that found no place. left: what ranks could still hold then, larger tables being placed.
        dense_bytes: of the towers, on every rank. reserve: share of the memory kept free.
    """

    cluster: Cluster
    choices: Sequence[TableChoices]
    table: TableChoices
    capacity: Capacity
    left: Capacity
    dense_bytes: int
    reserve: float

    @property
    def least(self) -> Choice:
        """The table's way that takes least of any rank."""
        return min(self.table.choices, key=lambda c: float(c.device_S.max() + c.host_S.max()))

    @property
    def piece(self) -> Cost:
        """What the largest piece of that way takes."""
        return max(self.least.costs, key=lambda cost: (cost.device, cost.host))


def why_not(refused: Refused) -> str:
    """The plain reason."""
    cluster, table = refused.cluster, refused.table
    ways = ", ".join(dict.fromkeys(f"{choice.sharding_type} ({choice.kernel})" for choice in table.choices))
    return (
        f"the tables do not fit on {cluster.label}: no place for table '{table.name.removeprefix(TABLE_PREFIX)}' "
        f"({table.rows:,} x {table.dim} {table.dtype}): {_reason(refused)}. Allowed for it: {ways}. A rank has "
        f"{_gib(cluster.device_bytes or cluster.host_bytes)} of {_memory(cluster)}, less "
        f"{100 * refused.reserve:.0f}% reserve and {_gib(refused.dense_bytes)} for the towers"
    )


def _reason(refused: Refused) -> str:
    cluster, capacity = refused.cluster, refused.capacity
    room, on_host = float(capacity.device_W[0]), float(capacity.host_W[0])
    least, piece = refused.least, refused.piece
    if room <= 0:
        return (
            f"the towers alone take {_gib(refused.dense_bytes)} of a rank (weights, gradients, optimizer), which "
            "leaves nothing for tables: lower model.dim, model.hidden or model.depth"
        )
    if float(least.device_S.max()) > room:
        needs = f"{_parts(least, piece)} of {_memory(cluster)}"
        return f"{_pieces(least)} needs {needs}, and a rank has {_gib(room)} for tables"
    if float(least.host_S.max()) > on_host:
        needs = _gib(float(least.host_S.max()))
        return f"{_pieces(least)} needs {needs} of host memory, and a rank's share has {_gib(on_host)} for tables"
    return _together(refused) or _scattered(least, refused.left, cluster)


def _together(refused: Refused) -> str:
    """The reason if all tables need more than there is, wherever they lie; else nothing."""
    ranks = refused.cluster.world_size
    for memory, have_W, of in (
        (_memory(refused.cluster), refused.capacity.device_W, lambda choice: choice.device_S),
        ("host memory", refused.capacity.host_W, lambda choice: choice.host_S),
    ):
        needed = sum(min(float(of(choice).sum()) for choice in table.choices) for table in refused.choices)
        have = float(have_W.sum())
        if needed > have:
            return (
                f"all tables need {_gib(needed)} of {memory} together, and {ranks} rank(s) have {_gib(have)} for them"
            )
    return ""


def _scattered(choice: Choice, left: Capacity, cluster: Cluster) -> str:
    """The reason if all tables need less than there is, but no rank has enough in one piece."""
    on_host = bool((choice.host_S.max() > 0) and (choice.device_S.max() <= left.device_W).all())
    left_W, piece_S = (left.host_W, choice.host_S) if on_host else (left.device_W, choice.device_S)
    everywhere = choice.spread == "ranks"
    leave = "the fullest rank" if everywhere else "no rank more than"
    rest = float(left_W.min() if everywhere else left_W.max())
    return (
        f"{_pieces(choice)} needs {_gib(float(piece_S.max()))} of {'host memory' if on_host else _memory(cluster)}, "
        f"and the tables placed before it leave {leave} {_gib(rest)}"
    )


def _parts(choice: Choice, piece: Cost) -> str:
    """What a piece takes on a device, and of what it is made."""
    buffers = "gradients and buffers" if choice.sharding_type == "data_parallel" else "buffers of the batch"
    parts = {"weights": piece.weights, "optimizer's sums": piece.sums, buffers: piece.buffers}
    return f"{_gib(piece.device)} ({', '.join(f'{name} {_gib(size)}' for name, size in parts.items() if size)})"


def _pieces(choice: Choice) -> str:
    if choice.sharding_type == "data_parallel":
        return f"the copy on each of {len(choice.shards)} rank(s)"
    if len(choice.shards) == 1:
        return "whole, it"
    return f"cut into {len(choice.shards)} ({choice.sharding_type}), its largest piece"


def _memory(cluster: Cluster) -> str:
    return "memory" if cluster.device.kind == "cpu" else f"{cluster.name} memory"


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"
