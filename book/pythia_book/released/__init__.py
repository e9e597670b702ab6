"""Downloads, converts, audits and continues released Pythia models; reads their training data."""
