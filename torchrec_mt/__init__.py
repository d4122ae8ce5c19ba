"""torchrec_mt: one multi-task two-tower retrieval model over sharded embedding tables."""

__version__ = "0.1.0"
