"""Balancing: losses_T -> weights_T. Knows no module, optimizer or process group."""
