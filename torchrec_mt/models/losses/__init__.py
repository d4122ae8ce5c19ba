"""Losses: pure functions of tensors. What ranks gathered comes in; a loss never sees a rank."""
