"""The metrics, each a function from predictions and references to a score; they equal the official scorers."""
