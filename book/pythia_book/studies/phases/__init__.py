"""Phases of early training: from single tokens to pairs of tokens to induction."""
