"""Speed against named baselines, correctness on a GPU, and a cost model of the training step."""
