"""Utilities for files, worker processes, progress bars, interrupts, the machine and entry points."""
