"""Memorization and the order of training (paper section 3.2)."""
