"""Term frequency and what a model knows (paper section 3.3)."""
