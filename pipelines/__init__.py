"""Lists of links to shards: download, clean, publish."""
