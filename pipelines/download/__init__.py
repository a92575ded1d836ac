"""Download: links to bytes."""
