"""Visual decoders: embeddings to pixels."""
