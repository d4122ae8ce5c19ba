"""Balancing: losses_T (and the Gram matrix gram_TT of the tasks' gradients) -> weights_T. Knows no module, optimizer or
process group."""
