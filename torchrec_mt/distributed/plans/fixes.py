"""What would make tables fit that do not: the smallest single changes, least harm first, each planned and found to fit.

A program that has caught TablesDoNotFitError gives the problem and a way to plan a case; changes.py says what to try.
"""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from torchrec_mt.distributed.plans.changes import Kind, kinds_of_change
from torchrec_mt.distributed.plans.ladders import Change, Ladder, least_rung
from torchrec_mt.distributed.plans.plan import Plan
from torchrec_mt.distributed.plans.stuck import Stuck

PlanCase = Callable[[Sequence[str], str | None], Plan | None]
"""Plans a case, by overrides (KEY=VALUE) and the text of a cluster; None if it does not fit, or cannot be."""

MOST_PLANS = 40
_KEPT = 3
"""Plannings that each later kind of change has for sure."""


@dataclass(frozen=True, kw_only=True)
class Fix:
    """A change that was planned and fits.

    Args:
        overrides: KEY=VALUE, for `--set`. cluster: for `--cluster`; None leaves it.
        smallest: the next smaller change of its kind was planned, too, and does not fit (or there is none).
        busiest_ms: of the plan's busiest rank. free_bytes: of the device of its fullest rank, the reserve taken off.
    """

    kind: Kind
    says: str
    overrides: tuple[str, ...]
    cluster: str | None
    smallest: bool
    busiest_ms: float
    free_bytes: int

    @property
    def arguments(self) -> list[str]:
        """As a user types them, each with its value."""
        sets = [f"--set {shlex.quote(override)}" for override in self.overrides]
        return [*sets, *([f"--cluster {shlex.quote(self.cluster)}"] if self.cluster else [])]


@dataclass(frozen=True, kw_only=True)
class Fixes:
    """What a search came to.

    Args:
        fixes: the least harmful kind first. tried: plannings made, by kind of change; kinds without any are left out.
        interrupted: it was ended by Ctrl-C.
    """

    fixes: list[Fix]
    tried: dict[str, int]
    interrupted: bool

    def to_json(self, reason: str) -> str:
        """With the reason why nothing fits as it is."""
        fixes = [asdict(fix) | {"arguments": fix.arguments} for fix in self.fixes]
        rest = {"tried": self.tried, "interrupted": self.interrupted}
        return json.dumps({"fits": False, "reason": reason, "fixes": fixes, **rest}, indent=1) + "\n"


def find_fixes(
    stuck: Stuck, plan_case: PlanCase, *, progress: Callable[[int, str], None] = lambda tried, kind: None
) -> Fixes:
    """Searches for changes by which the tables fit, in `MOST_PLANS` plannings at most; Ctrl-C ends it with what it has.

    Args:
        progress: called before each planning, with those made so far and the kind of change.
    """
    search = _Search(plan_case, progress)
    kinds = kinds_of_change(stuck)
    try:
        for place, (kind, ladders) in enumerate(kinds):
            search.begin(place, kind, limit=MOST_PLANS - _KEPT * (len(kinds) - place - 1))
            try:
                any(search.climb(ladder) for ladder in ladders)
            except _EnoughError:
                continue
    except KeyboardInterrupt:
        search.interrupted = True
    return Fixes(fixes=list(search.found.values()), tried=search.tried, interrupted=search.interrupted)


class _EnoughError(Exception):
    """The plannings of a kind of change are used up."""


@dataclass
class _Search:
    plan_case: PlanCase
    progress: Callable[[int, str], None]
    found: dict[int, Fix] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False
    _at: int = 0
    _kind: Kind = "layout"
    _limit: int = 0

    def begin(self, place: int, kind: Kind, *, limit: int) -> None:
        """Goes on to the next entry."""
        self._at, self._kind, self._limit = place, kind, limit

    def climb(self, ladder: Ladder) -> bool:
        """Keeps the least change of a ladder that fits; whether there is one."""
        rung = least_rung(
            lambda rung: self._fits(ladder.at(rung)), ladder.rungs, guess=ladder.guess, steady=ladder.steady
        )
        if rung is None:
            return False
        self.found[self._at] = replace(self.found[self._at], smallest=True)
        return True

    def _fits(self, change: Change) -> bool:
        total = sum(self.tried.values())
        if total >= self._limit:
            raise _EnoughError
        self.progress(total, self._kind)
        self.tried[self._kind] = self.tried.get(self._kind, 0) + 1
        plan = self.plan_case(change.overrides, change.cluster)
        if plan is None:
            return False
        self.found[self._at] = Fix(
            kind=self._kind,
            says=change.says,
            overrides=change.overrides,
            cluster=change.cluster,
            smallest=False,
            busiest_ms=plan.busiest.ms,
            free_bytes=min(rank.capacity - rank.reserved - rank.used for rank in plan.ranks),
        )
        return True
