"""Reads, draws and tests the released evaluation results, from the user's copy of them."""
