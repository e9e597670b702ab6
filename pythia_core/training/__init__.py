"""The training loop and what makes it exact: from `train` outwards to runs on disk."""
