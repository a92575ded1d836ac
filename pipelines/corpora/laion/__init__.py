"""LAION image-text pairs: the cuts on their metadata, and what is made of them."""
