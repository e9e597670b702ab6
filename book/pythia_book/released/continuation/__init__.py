"""Continues training from a checkpoint, with or without masculine and feminine pronouns swapped."""
