"""Continues training from a checkpoint, on unchanged data or with swapped pronouns."""
