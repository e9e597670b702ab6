"""What deduplication removes and what it changes (paper sections 2.1 and 2.6)."""
