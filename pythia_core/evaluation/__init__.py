"""Evaluation of a checkpoint: scores, generation, memorization, activations."""
