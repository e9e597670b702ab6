"""What models can do by size and over training (paper section 2.6)."""
