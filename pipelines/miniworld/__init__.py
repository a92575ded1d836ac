"""A drawn world, written in the external form of each corpus."""
