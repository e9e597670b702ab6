"""What deduplication removes and what it changes (paper sections 2.2 and 2.6)."""
