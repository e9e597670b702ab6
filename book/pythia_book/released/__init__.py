"""Downloads, converts, audits and continues released Pythia models. Reads their training data."""
