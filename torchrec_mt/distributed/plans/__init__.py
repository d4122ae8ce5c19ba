"""Sharding plans: which table lies where on which machines, what that takes, and the search for the best."""
