"""Entry points: one executable per job."""
