"""Transforms: table to table."""
