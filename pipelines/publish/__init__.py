"""Publishing: shards, card, report."""
