"""Benchmark tasks: items, prompts, scores, the evaluation harness, sweeps over checkpoints."""
