"""Common misstatements about Pythia, with the evidence."""
