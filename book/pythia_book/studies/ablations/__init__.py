"""The ablations study: what Pythia's choices of architecture change, one at a time."""
