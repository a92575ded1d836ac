"""Clips: which frames are taken, the decoders, and the process in which they run."""
