"""torchrec_mt: one multi-task two-tower retrieval model over sharded embedding tables."""

import os
import sys

__version__ = "0.1.0"

# Before torch starts its threads: a waiting OpenMP thread spins for a moment, then sleeps. Where anything else runs (a
# second rank, another program), spinning on as is the default makes a step several times slower; sleeping at once costs
# a third of the speed of an idle machine (docs/benchmarks.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1500")

# As a program (`python -m torchrec_mt.X` stands as "-m" while it is looked up, or the `torchrec-mt` script), not as a
# library: seconds of imports lie ahead, and Ctrl-C is to end them as cleanly as it ends the program itself.
if sys.argv[:1] == ["-m"] or (sys.argv and os.path.basename(sys.argv[0]) == "torchrec-mt"):
    from torchrec_mt.errors import end_on_interrupt

    end_on_interrupt()
