"""Fetches, converts, audits and continues released Pythia models; streams their training data."""
