"""Benchmarks: `make bench-...`. The project is imported first: it says how OpenMP's threads wait before torch starts them."""

import torchrec_mt  # noqa: F401
