"""The released evaluation results, read from the user's copy."""
