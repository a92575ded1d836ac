"""Fetching: links, bytes, images."""
