"""Train runs in a loop that can be resumed exactly, and find the runs on disk."""
