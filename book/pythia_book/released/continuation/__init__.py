"""Training on from a released checkpoint, or from one of ours, with or without a swap."""
