"""Generation: prompts in, replies out."""
