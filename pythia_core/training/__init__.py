"""Training: an exactly resumable loop, and the runs that it leaves on disk."""
