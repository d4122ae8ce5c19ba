"""Process groups, collectives, sharding and planning: with training/, the only rooms that see torch.distributed."""
