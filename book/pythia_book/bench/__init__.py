"""Speed against named baselines, correctness on a GPU, and what a training step should cost."""
