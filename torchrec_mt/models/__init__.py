"""Plain modules and pure functions: they know no ranks and no files, and run unsharded on one CPU."""
