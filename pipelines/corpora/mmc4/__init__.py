"""MMC4: interleaved documents."""
