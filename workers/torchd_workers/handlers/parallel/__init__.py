"""Models that are larger than one device: loading their checkpoints, splitting them over the ranks of a group."""
