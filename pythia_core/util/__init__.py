"""Files, worker processes, progress bars, the machine, and what other packages add."""
