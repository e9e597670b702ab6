"""Accuracy and loss by size and over training (paper section 2.6)."""
