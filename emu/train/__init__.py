"""Training: loop, optimiser, checkpoints, Ray Train."""
