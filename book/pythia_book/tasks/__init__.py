"""Benchmark tasks: items, prompts, scores, sweeps over checkpoints, and the evaluation harness."""
