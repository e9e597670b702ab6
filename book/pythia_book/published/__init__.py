"""The released evaluation results, read from a copy that the user provides."""
