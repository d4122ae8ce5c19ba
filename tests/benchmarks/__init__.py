"""Benchmarks: `make bench-...`. The project comes first: it says how OpenMP threads wait before torch starts them."""

import torchrec_mt  # noqa: F401
