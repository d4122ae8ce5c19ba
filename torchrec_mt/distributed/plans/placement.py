"""Where tables lie on ranks while a plan is being searched: what each rank has to do and can still hold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchrec_mt.distributed.plans.choices import Choice, TableChoices

Key = tuple[float, float]
_EPS = 1e-9


@dataclass(frozen=True)
class Capacity:
    """What W ranks can hold beside what is not tables, in bytes: of their devices, and of their hosts' memory."""

    device_W: np.ndarray
    host_W: np.ndarray
    ranks_per_host: int


class Placement:
    """Some or all tables on their ranks.

    Args:
        tables, capacity: of the plan.
    """

    def __init__(self, tables: Sequence[TableChoices], capacity: Capacity) -> None:
        self.tables = tables
        self.tried = 0
        self.ms_W = np.zeros(len(capacity.device_W))
        self.device_W = capacity.device_W.astype(np.float64)
        self.host_W = capacity.host_W.astype(np.float64)
        self._per_host = capacity.ranks_per_host
        self._at: list[tuple[Choice, np.ndarray] | None] = [None] * len(tables)

    @property
    def complete(self) -> bool:
        """Whether every table has its place (an interrupt may come in the middle of a move)."""
        return all(place is not None for place in self._at)

    def key(self) -> Key:
        """Smaller is better: the busiest rank's milliseconds, then how unevenly all are spread."""
        return float(self.ms_W.max()), float(self.ms_W @ self.ms_W)

    def at(self, table: int) -> tuple[Choice, np.ndarray]:
        """The choice of a table that lies somewhere, and the rank of each shard."""
        place = self._at[table]
        assert place is not None
        return place

    def put(self, table: int, choice: Choice, ranks: np.ndarray) -> None:
        """Lays a table on ranks, whether it fits or not."""
        np.add.at(self.ms_W, ranks, choice.ms_S)
        np.subtract.at(self.device_W, ranks, choice.device_S)
        np.subtract.at(self.host_W, ranks, choice.host_S)
        self._at[table] = choice, ranks

    def take(self, table: int) -> tuple[Choice, np.ndarray]:
        """Takes a table away; returns what `put` would put back."""
        choice, ranks = self.at(table)
        self._at[table] = None  # first, so that an interrupt leaves nothing that seems complete
        np.subtract.at(self.ms_W, ranks, choice.ms_S)
        np.add.at(self.device_W, ranks, choice.device_S)
        np.add.at(self.host_W, ranks, choice.host_S)
        return choice, ranks

    def fits(self, choice: Choice, ranks: np.ndarray) -> bool:
        """Whether ranks, all different, can hold the shards."""
        return bool((self.device_W[ranks] >= choice.device_S).all() and (self.host_W[ranks] >= choice.host_S).all())

    def on(self, rank: int) -> list[int]:
        """Tables with something on a rank, those first that keep it busiest."""
        work = [
            (-float(place[0].ms_S[place[1] == rank].sum()), table)
            for table, place in enumerate(self._at)
            if place is not None and (place[1] == rank).any()
        ]
        return [table for _, table in sorted(work)]

    def whole(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tables in one piece: table_M, rank_M, ms_M, device_M."""
        single = [
            (table, int(place[1][0]), float(place[0].ms_S[0]), float(place[0].device_S[0]))
            for table, place in enumerate(self._at)
            if place is not None and len(place[1]) == 1
        ]
        table_M, rank_M, ms_M, device_M = (
            (np.array(column) for column in zip(*single, strict=True))
            if single
            else (np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros(0))
        )
        return table_M, rank_M, ms_M, device_M

    def best(self, choices: Sequence[Choice], *, by_memory: bool = False) -> tuple[Choice, np.ndarray] | None:
        """The choice and place that lengthen the step least (by memory: that leave the fullest rank the most)."""
        best, best_key, top = None, (np.inf, np.inf), float(self.ms_W.max())
        for choice in choices:
            self.tried += 1
            ranks = self._where(choice, by_memory=by_memory)
            if ranks is None:
                continue
            if by_memory:
                key = -float((self.device_W[ranks] - choice.device_S).min()), choice.total_ms
            else:
                ms, added = self.ms_W[ranks], choice.ms_S
                key = max(top, float((ms + added).max())), float((2 * ms + added) @ added)
            if key < best_key:
                best, best_key = (choice, ranks), key
        return best

    def exchange(self, a: int, b: int) -> bool:
        """Lays two tables in one piece each on the other's rank; False, with nothing changed, if they do not fit."""
        self.tried += 1
        (choice_a, ranks_a), (choice_b, ranks_b) = self.take(a), self.take(b)
        fits = self.fits(choice_a, ranks_b) and self.fits(choice_b, ranks_a)
        self.put(a, choice_a, ranks_b if fits else ranks_a)
        self.put(b, choice_b, ranks_a if fits else ranks_b)
        return fits

    def _where(self, choice: Choice, *, by_memory: bool) -> np.ndarray | None:
        """The ranks of a choice's shards: those with least to do among those that can hold them."""
        match choice.spread:
            case "ranks":
                ranks = np.arange(len(self.ms_W))
                return ranks if self.fits(choice, ranks) else None
            case "rank":
                return self._within(choice, 0, len(self.ms_W), by_memory=by_memory)
            case "host" | "hosts":
                return self._hosts(choice, by_memory=by_memory)

    def _within(self, choice: Choice, start: int, stop: int, *, by_memory: bool) -> np.ndarray | None:
        """Places shard after shard on single ranks of a range."""
        ms_R, device_R, host_R = (a[start:stop].copy() for a in (self.ms_W, self.device_W, self.host_W))
        ranks = []
        for ms, device, host in zip(choice.ms_S, choice.device_S, choice.host_S, strict=True):
            weight_R = -device_R if by_memory else ms_R
            score_R = np.where((device_R >= device) & (host_R >= host), weight_R, np.inf)
            rank = int(score_R.argmin())
            if score_R[rank] == np.inf:
                return None
            ms_R[rank] += ms
            device_R[rank] -= device
            host_R[rank] -= host
            ranks.append(start + rank)
        return np.array(ranks)

    def _hosts(self, choice: Choice, *, by_memory: bool) -> np.ndarray | None:
        """The ranks of the least busy host, or of as many as there are blocks of columns."""
        weight_W = -self.device_W if by_memory else self.ms_W
        order = np.argsort(weight_W.reshape(-1, self._per_host).max(axis=1), kind="stable")
        ranges = [np.arange(host * self._per_host, (host + 1) * self._per_host) for host in order]
        if choice.sharding_type == "table_column_wise":
            found = (self._within(choice, r[0], r[-1] + 1, by_memory=by_memory) for r in ranges)
            return next((ranks for ranks in found if ranks is not None), None)
        blocks = len(choice.shards) // self._per_host
        taken: list[np.ndarray] = []
        for ranks in ranges:
            block = slice(len(taken) * self._per_host, (len(taken) + 1) * self._per_host)
            if (self.device_W[ranks] >= choice.device_S[block]).all() and (
                self.host_W[ranks] >= choice.host_S[block]
            ).all():
                taken.append(ranks)
            if len(taken) == blocks:
                return np.concatenate(taken)
        return None


def better(key: Key, than: Key) -> bool:
    """Whether a placement's key is better, beyond rounding."""
    if key[0] < than[0] * (1 - _EPS):
        return True
    return key[0] <= than[0] * (1 + _EPS) and key[1] < than[1] * (1 - 1e-7)
