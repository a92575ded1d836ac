"""Corpora: one module each, their external form and their rules."""
