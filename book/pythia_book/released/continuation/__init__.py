"""Continues training from a released or local checkpoint, with or without a pronoun swap.

A pronoun swap replaces masculine pronouns in the training text by feminine ones, or the reverse.
"""
