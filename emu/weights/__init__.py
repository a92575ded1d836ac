"""Weights on disk: our layout, the released one, those of LLaMA and open_clip."""
