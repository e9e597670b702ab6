"""What is often told wrongly about Pythia, with the evidence."""
