"""The study of how much results vary between training seeds (after PolyPythias)."""
