"""Filters: table to reason-or-null."""
