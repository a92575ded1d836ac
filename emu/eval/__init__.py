"""Quality: metrics that equal the official scorers, and the command that applies them."""
