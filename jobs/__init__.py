"""The doors: one executable a job."""
