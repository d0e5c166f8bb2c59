"""Where a pass over the blocks runs."""
