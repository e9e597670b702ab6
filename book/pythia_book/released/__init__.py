"""Fetches, converts, audits and continues released Pythia models, and streams their data."""
