"""Exact retrieval over the whole catalogue, and how good it is."""
