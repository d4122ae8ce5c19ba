"""Architectures of sharing between tasks: one per file, chosen in choice.py."""
