"""The engine: stages over shards, run locally or on Ray, restartable at any moment."""
