"""Serving: the HTTP API of a trained model."""
