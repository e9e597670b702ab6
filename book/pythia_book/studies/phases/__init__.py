"""Phases of early training: from single tokens to pairs to induction."""
