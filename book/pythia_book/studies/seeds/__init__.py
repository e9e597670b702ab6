"""How much results vary between training seeds (after PolyPythias)."""
