"""The suite in miniature, and checks of its guarantees (paper section 2)."""
