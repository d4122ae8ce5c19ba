"""Changes by which tables would fit, as a table for the terminal."""

from rich.table import Table
from rich.text import Text

from torchrec_mt.distributed.plans.fixes import Fix, Fixes
from torchrec_mt.reporting.plans import size
from torchrec_mt.reporting.table import plain_table
from torchrec_mt.reporting.terminal import console
from torchrec_mt.reporting.trimmed import Trimmed

_SHOWN = 4
"""Arguments of a fix that are shown; more are in the JSON."""


def print_fixes(found: Fixes) -> None:
    """Each fix with what its plan takes, then how it is asked for, unbroken; or that none was found."""
    if found.fixes:
        console().print(Trimmed(_table(found)), "")
    else:
        console().print("no single change was found by which the tables fit")
    for number, fix in enumerate(found.fixes, 1):
        console().print(Text(f"{number}  {_typed(fix)}"), soft_wrap=True)
    if any(fix.kind == "rows" for fix in found.fixes):
        console().print(Text("to train with fewer rows: dataset.tables.NAME.max_rows, and prepare again", style="dim"))
    tried = ", ".join(f"{kind} {count}" for kind, count in found.tried.items()) or "none"
    ended = "; interrupted, there may be more" if found.interrupted else ""
    console().print(Text(f"planned again, by what was changed: {tried}{ended}", style="dim"), soft_wrap=True)


def _table(found: Fixes) -> Table:
    table = plain_table("what would fit, each alone, the least harmful first", "", gap=2)
    table.add_column("change")
    for name in ("busiest rank, ms", "fullest rank has free"):
        table.add_column(name, justify="right")
    for number, fix in enumerate(found.fixes, 1):
        says = f"{fix.says}{'' if fix.smallest else ' (less may do)'}"
        table.add_row(str(number), says, f"{fix.busiest_ms:.4g}", size(fix.free_bytes))
    return table


def _typed(fix: Fix) -> str:
    more = len(fix.arguments) - _SHOWN
    return " ".join(fix.arguments[:_SHOWN]) + (f" ... and {more} more, see --json" if more > 0 else "")
