"""Which cell of an experiment is whose turn: programs that share an output folder each take cells that nobody has.

OUTPUT/.locks/METHOD.seed-N    held while a program trains and judges the cell; ends with it, however it ends
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from torchrec_mt.distributed.collectives import on_main
from torchrec_mt.holding import held_if_free
from torchrec_mt.workflows.grid_config import Cell

LOCKS = ".locks"
_LOOK_S = 1.0


class AskedToEndError(Exception):
    """The program was asked to end; `place` is the run that goes on."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.place = place


def turns(
    cells: Sequence[Cell], *, tell: Callable[[str], None], asked: Callable[[], bool]
) -> Generator[tuple[int, Cell], None, None]:
    """Every cell once, with its number from 1, held until the next is asked for. Called on every rank.

    Those that other programs hold come last, and are waited for; so do twins while the run whose twins they are does.

    Raises:
        AskedToEndError: the program was asked to end while it waited.
    """
    left, told = list(enumerate(cells, 1)), False
    while left:
        held: list[tuple[int, Cell]] = []
        for number, cell in left:
            early = any(other.place == cell.place for _, other in held)
            with ExitStack() as lock:
                if not early and on_main(partial(_take, cell, lock)):
                    yield number, cell
                else:
                    held.append((number, cell))
        if len(held) == len(left):
            if on_main(asked):
                raise AskedToEndError(held[0][1].place)
            if not told:
                tell(f"  waiting for {len(held)} cells that another program has, first {held[0][1].name}")
                told = True
            time.sleep(_LOOK_S)  # a lock of another program, perhaps on another machine, gives no sign when it is free
        left = held


def _take(cell: Cell, until: ExitStack) -> bool:
    return until.enter_context(held_if_free(lock_of(cell)))


def lock_of(cell: Cell) -> Path:
    """The file that says whether a program has the cell; its folder is made."""
    folder = cell.place.parents[1] / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{cell.method}.seed-{cell.seed}"
