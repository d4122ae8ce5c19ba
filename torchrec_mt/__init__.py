"""torchrec_mt: one multi-task two-tower retrieval model over sharded embedding tables."""

import os

__version__ = "0.1.0"

# Before torch starts its threads: waiting OpenMP threads sleep instead of spinning. Little is lost on an idle machine, and
# beside the reader's thread, a second rank or another program a step is several times faster (docs/benchmarks.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
