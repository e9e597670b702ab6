"""How fast Pythia can be trained on one GPU."""
