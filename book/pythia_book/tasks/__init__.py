"""Defines benchmark tasks, scores checkpoints on them, and connects to the evaluation harness."""
