"""Serving: the HTTP interface."""
