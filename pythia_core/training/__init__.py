"""The training loop, exactly resumable, and runs on disk."""
