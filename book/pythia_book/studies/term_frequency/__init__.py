"""Term frequency and what a model knows (paper section 3.3)."""

CHOICES = 4
"""Answers to choose from: sums and definitions have one right answer and three wrong ones."""
WORD_BINS = (1, 4, 16, 64, 256)
"""Lower ends of the bins of word frequency; the same number of items is taken from each."""
