"""The Pythia suite in miniature, and checks of what the suite guarantees (paper section 2)."""
