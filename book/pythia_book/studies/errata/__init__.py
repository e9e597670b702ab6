"""Common misstatements about Pythia, with evidence."""
