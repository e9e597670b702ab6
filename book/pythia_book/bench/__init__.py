"""Benchmarks: speed against named baselines, correctness on a GPU, and a cost model.

The cost model predicts the duration of a training step on a GPU.
"""
