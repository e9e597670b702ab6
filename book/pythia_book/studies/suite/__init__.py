"""The suite in miniature, and proofs that it is what it promises (paper section 2)."""
