"""Readers: input files as records; a format is one file."""
