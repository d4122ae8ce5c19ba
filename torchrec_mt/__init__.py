"""torchrec_mt: one multi-task two-tower retrieval model over sharded embedding tables."""

import os
import sys

__version__ = "0.1.0"

# Before torch starts its threads: waiting OpenMP threads sleep instead of spinning. Little is lost on an idle machine,
# and beside the reader's thread, a second rank or another program a step is several times faster (docs/benchmarks.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# As a program (`python -m torchrec_mt.X` stands as "-m" while it is looked up, or the `torchrec-mt` script), not as a
# library: seconds of imports lie ahead, and Ctrl-C is to end them as cleanly as it ends the program itself.
if sys.argv[:1] == ["-m"] or (sys.argv and os.path.basename(sys.argv[0]) == "torchrec-mt"):
    from torchrec_mt.errors import end_on_interrupt

    end_on_interrupt()
