"""Speed against named peers, and what a training step should cost."""
