"""Benchmarks: speed against named baselines, correctness on a GPU, and a cost model."""
