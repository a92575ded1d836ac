"""Shards to a model, a model to replies."""
