"""Training: one backward a step, checkpoints, the loop."""
