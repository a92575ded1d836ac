"""Training: loop, optimizer steps, checkpoints, Ray Train."""
