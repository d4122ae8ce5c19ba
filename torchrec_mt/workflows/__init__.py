"""What several programs do, each from a whole config; above the parts, which know only their own sections."""
