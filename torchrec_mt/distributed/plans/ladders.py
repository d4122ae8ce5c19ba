"""Changes of one kind in a row, the least first, and how to find the first that fits without trying all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torchrec_mt.distributed.plans.stuck import StuckTable

T = TypeVar("T")


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


def ladder(
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


def one(change: Change) -> Ladder:
    """A ladder of one rung."""
    return Ladder(rungs=1, at=lambda rung: change)


def largest(
    tables: Sequence[StuckTable],
    what: str,
    key: Callable[[StuckTable], str],
    *,
    guess: Callable[[int], bool] = lambda count: True,
) -> Ladder:
    """The two largest tables changed alike, the three largest, ... all."""

    def at(count: int) -> Change:
        names = ", ".join(f"'{table.name}'" for table in tables[:count])
        which = f"tables {names}" if count <= 3 else f"the {count} largest tables"
        return Change(says=f"{which} {what}", overrides=tuple(key(table) for table in tables[:count]))

    return ladder(range(2, len(tables) + 1), at, guess=guess)


def least_rung(fits: Callable[[int], bool], rungs: int, *, guess: int, steady: bool) -> int | None:
    """The lowest rung that fits, the last to be asked of all that do; by doubling steps from the guess, then bisection.

    Exact where every rung above one that fits does, too; else a rung that fits above one that does not.

    Args:
        steady: if the last rung does not fit, none does.

    Returns:
        None: none was found.
    """
    low, high, last, step, rung = -1, rungs, rungs - 1, 1, guess
    if rungs == 0 or (steady and guess < last and not fits(last)):
        return None
    if steady and guess < last:
        high = last
    while high - low > 1:
        if fits(rung):
            high = rung
        else:
            low = rung
        if low < 0:
            rung = max(0, high - step)
        elif high > last:
            rung = min(last, low + step)
        else:
            rung = min(low + step, (low + high) // 2)
        step *= 2
    return high if high <= last else None
