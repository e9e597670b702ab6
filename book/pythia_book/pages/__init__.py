"""Drawings and numbers of the pages that explain."""
