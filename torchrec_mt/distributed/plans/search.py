"""The search for a plan: a way and a place for each table, so that the busiest rank has the least to do and all fits.

The measure is the one TorchRec's planner minimises: the milliseconds of its shards, added up over the busiest rank.
Tables are placed one after another, largest first, each where it lengthens the step least; several such plans are made
under several restrictions, and the best are improved by moving tables off the busiest rank. Then the same is tried with
less memory, as long as that costs next to no time. No randomness, no clock: equal tables give equal plans on all ranks.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torchrec_mt.distributed.plans.choices import Choice, TableChoices
from torchrec_mt.distributed.plans.placement import Capacity, Placement, better

Progress = Callable[[int, float], None]
_ENOUGH = 0.003
"""How near to what no plan can undercut a plan is no longer improved."""
_TIME_FOR_MEMORY, _ROUNDS = 0.02, 5
"""What less memory may cost in time, as in TorchRec's MemoryBalancedPartitioner; how often less is tried."""
_GRID = 1000
"""Combinations of tables' choices, up to which all are tried."""
_TRIES = 200
"""How often two tables are moved together, at most, before a plan is taken for as good as it gets."""


@dataclass(frozen=True)
class Found:
    """A plan: per table its choice and the rank of each shard.

    Args:
        busiest_ms: of the rank with most to do. bound_ms: no plan of these choices can have less.
        tried: placements of single tables that were weighed. interrupted: the search was stopped before its end.
    """

    placed: tuple[tuple[Choice, tuple[int, ...]], ...]
    busiest_ms: float
    bound_ms: float
    tried: int
    interrupted: bool

    @classmethod
    def of(cls, plan: Placement, bound_ms: float, *, tried: int = 0, interrupted: bool = False) -> "Found":
        """Of a placement of all tables."""
        placed = map(plan.at, range(len(plan.tables)))
        return cls(
            placed=tuple((choice, tuple(map(int, ranks))) for choice, ranks in placed),
            busiest_ms=plan.key()[0],
            bound_ms=bound_ms,
            tried=tried,
            interrupted=interrupted,
        )


class DoesNotFitError(Exception):
    """No plan was found that fits.

    Args:
        table: one too large for any rank, or else the first that found no place, in the order largest first.
        left: what ranks could still hold then.
    """

    def __init__(self, table: int, left: Capacity) -> None:
        super().__init__(f"table {table} finds no place")
        self.table, self.left = table, left


def search(tables: Sequence[TableChoices], capacity: Capacity, *, progress: Progress = lambda tried, ms: None) -> Found:
    """The best plan found; an interrupt (Ctrl-C) ends the search with the best so far.

    Args:
        progress: called with the placements weighed so far and the milliseconds of the best plan's busiest rank.

    Raises:
        DoesNotFitError: none was found.
        KeyboardInterrupt: before the first was found.
    """
    plans: list[Placement] = []
    bound = bound_of(tables, capacity)
    work, interrupted = _Work(progress, enough=bound * (1 + _ENOUGH)), False
    try:
        _search(tables, capacity, work, plans)
        _with_less_memory(tables, capacity, work, plans)
    except KeyboardInterrupt:
        if not any(plan.complete for plan in plans):
            raise
        interrupted = True
    best = plans[-1] if not interrupted else min((plan for plan in plans if plan.complete), key=Placement.key)
    return Found.of(best, bound, tried=work.tried, interrupted=interrupted)


def bound_of(tables: Sequence[TableChoices], capacity: Capacity) -> float:
    """Milliseconds that no plan can undercut: an even spread of the cheapest ways, or the largest piece that some table
    must have.

    Raises:
        DoesNotFitError: a table of which no rank can hold the largest piece, in any way.
    """
    room, on_host = float(capacity.device_W.max()), float(capacity.host_W.max())
    possible = [
        [choice for choice in table.choices if choice.device_S.max() <= room and choice.host_S.max() <= on_host]
        for table in tables
    ]
    if not all(possible):
        raise DoesNotFitError(next(number for number, choices in enumerate(possible) if not choices), capacity)
    spread = sum(min(choice.total_ms for choice in choices) for choices in possible) / len(capacity.device_W)
    return max(spread, *(min(float(choice.ms_S.max()) for choice in choices) for choices in possible))


class _Work:
    """Counts what was weighed, and tells. A plan whose busiest rank has at most `enough` ms is not improved."""

    def __init__(self, progress: Progress, *, enough: float) -> None:
        self.tried, self.enough, self._best, self._progress = 0, enough, np.inf, progress

    def tell(self, plan: Placement) -> None:
        self.tried, plan.tried = self.tried + plan.tried, 0
        if plan.complete:
            self._best = min(self._best, plan.key()[0])
        self._progress(self.tried, self._best)


def _search(tables: Sequence[TableChoices], capacity: Capacity, work: _Work, plans: list[Placement]) -> None:
    """Appends plans that fit, the best last."""
    found: list[Placement] = []
    by_time, by_memory = _orders(tables)
    for allowed in _restrictions(tables, capacity):
        plan = Placement(tables, capacity)
        if _place_all(plan, by_time, allowed, by_memory=False) is None:
            found.append(plan)
            plans.append(plan)
        work.tell(plan)
    if not found:
        plan = Placement(tables, capacity)
        left_out = _place_all(plan, by_memory, [table.choices for table in tables], by_memory=True)
        if left_out is not None:
            raise DoesNotFitError(left_out, replace(capacity, device_W=plan.device_W, host_W=plan.host_W))
        found.append(plan)
        plans.append(plan)
    found.sort(key=Placement.key)
    for plan in found[:3]:
        _improve(plan, work)
        if plan.key()[0] <= work.enough:
            break
    plans.append(min(found, key=Placement.key))


def _with_less_memory(tables: Sequence[TableChoices], capacity: Capacity, work: _Work, plans: list[Placement]) -> None:
    """Searches again with less room on every device, halfway to what an even spread needs, and again; appends the last
    plan that costs at most `_TIME_FOR_MEMORY` more time."""
    work.enough = plans[-1].key()[0] * (1 + _TIME_FOR_MEMORY)
    used_W = capacity.device_W - plans[-1].device_W
    least, most = float(used_W.mean()), float(used_W.max())
    for _ in range(_ROUNDS):
        if most <= 1.05 * least:
            return
        room = (least + most) / 2
        tried: list[Placement] = []
        try:
            _search(tables, replace(capacity, device_W=np.minimum(capacity.device_W, room)), work, tried)
        except DoesNotFitError:
            least = room
            continue
        if tried[-1].key()[0] <= work.enough:
            plans.append(tried[-1])
            most = float((room - tried[-1].device_W).max())
        else:
            least = room


def _orders(tables: Sequence[TableChoices]) -> tuple[list[int], list[int]]:
    """Tables by time and by memory, largest first, each by what it takes at least."""
    ms = [min(choice.total_ms for choice in table.choices) for table in tables]
    size = [min(float((c.device_S + c.host_S).sum()) for c in table.choices) for table in tables]
    return sorted(range(len(tables)), key=lambda t: (-ms[t], t)), sorted(
        range(len(tables)), key=lambda t: (-size[t], t)
    )


def _restrictions(tables: Sequence[TableChoices], capacity: Capacity) -> list[list[Sequence[Choice]]]:
    """The choices that first plans are made of: all; the cheapest; the least for any rank; of one sharding type, each;
    every combination where they are few; and the cheapest where the device's memory has such a price that all together
    take no more than there is."""
    every = [table.choices for table in tables]
    found: list[list[Sequence[Choice]]] = [
        list(every),
        [[min(choices, key=lambda c: c.total_ms)] for choices in every],
        [[min(choices, key=lambda c: float(c.ms_S.max()))] for choices in every],
    ]
    for kind in dict.fromkeys(choice.sharding_type for choices in every for choice in choices):
        of_kind = [[choice for choice in choices if choice.sharding_type == kind] for choices in every]
        if all(of_kind):
            found.append(list(of_kind))
    if math.prod(map(len, every)) <= _GRID:
        found += [[[choice] for choice in combination] for combination in itertools.product(*every)]
    for share in (0.99, 0.95, 0.9):
        priced = _priced(every, share * float(capacity.device_W.sum()))
        if priced is not None:
            found.append(priced)
    return found


def _priced(every: Sequence[Sequence[Choice]], device_bytes: float) -> list[Sequence[Choice]] | None:
    """Per table the choice of least time plus price times memory, at the least price at which all fit; None where that
    is nothing, or nothing fits."""

    def chosen(price: float) -> list[Sequence[Choice]]:
        return [[min(choices, key=lambda c: c.total_ms + price * float(c.device_S.sum()))] for choices in every]

    def fit(choices: Sequence[Sequence[Choice]]) -> bool:
        return sum(float(choice.device_S.sum()) for (choice,) in choices) <= device_bytes

    low, high = 1e-15, 1.0
    if fit(chosen(0.0)) or not fit(chosen(high)):
        return None
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fit(chosen(middle)) else (middle, high)
    return chosen(high)


def _place_all(
    plan: Placement, order: Sequence[int], allowed: Sequence[Sequence[Choice]], *, by_memory: bool
) -> int | None:
    """Places every table; one whose choices find no place may take any other way. Returns the first without a place."""
    for table in order:
        best = plan.best(allowed[table], by_memory=by_memory) or plan.best(
            plan.tables[table].choices, by_memory=by_memory
        )
        if best is None:
            return table
        plan.put(table, *best)
    return None


def _improve(plan: Placement, work: _Work) -> None:
    """Moves tables off the busiest rank, one at a time, as long as that helps."""
    for _ in range(30 * len(plan.tables) + 100):
        if plan.key()[0] <= work.enough:
            return
        busiest = int(plan.ms_W.argmax())
        if not (_move(plan, busiest) or _swap(plan, busiest) or _move_two(plan, busiest)):
            return
        work.tell(plan)


def _move(plan: Placement, rank: int) -> bool:
    """Puts a table of the rank elsewhere, or in another way."""
    before = plan.key()
    for table in plan.on(rank):
        choice, ranks = plan.take(table)
        best = plan.best(plan.tables[table].choices)
        if best is not None:
            plan.put(table, *best)
            if better(plan.key(), before):
                return True
            plan.take(table)
        plan.put(table, choice, ranks)
    return False


def _swap(plan: Placement, rank: int) -> bool:
    """Exchanges a table that lies whole on the rank for one with less to do of another rank."""
    before = plan.key()
    table_M, rank_M, ms_M, _ = plan.whole()
    for a in np.flatnonzero(rank_M == rank)[np.argsort(-ms_M[rank_M == rank], kind="stable")][:64]:
        gain_M = ms_M[a] - ms_M
        after_M = np.maximum(before[0] - gain_M, plan.ms_W[rank_M] + gain_M)
        after_M[(rank_M == rank) | (gain_M <= 0)] = np.inf
        b = int(after_M.argmin())
        if after_M[b] >= before[0] or not plan.exchange(int(table_M[a]), int(table_M[b])):
            continue
        if better(plan.key(), before):
            return True
        plan.exchange(int(table_M[a]), int(table_M[b]))
    return False


def _move_two(plan: Placement, rank: int) -> bool:
    """Lays a table of the rank in each way it has, even where that alone is worse, and then another one anew."""
    before, every = plan.key(), range(len(plan.tables))
    tries = ((a, b, way) for a in plan.on(rank) for b in every if a != b for way in plan.tables[a].choices)
    for a, b, way in itertools.islice(tries, _TRIES):
        place_a, place_b = plan.take(a), plan.take(b)
        first = plan.best([way])
        if first is not None:
            plan.put(a, *first)
            second = plan.best(plan.tables[b].choices)
            if second is not None:
                plan.put(b, *second)
                if better(plan.key(), before):
                    return True
                plan.take(b)
            plan.take(a)
        plan.put(a, *place_a)
        plan.put(b, *place_b)
    return False
