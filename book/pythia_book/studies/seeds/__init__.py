"""What training again with other seeds would have given (after PolyPythias)."""
