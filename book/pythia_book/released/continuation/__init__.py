"""Continues training from a released or local checkpoint, with or without a pronoun swap."""
