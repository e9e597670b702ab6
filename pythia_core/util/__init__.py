"""Utilities for files, worker processes, progress, interrupts, the machine and entry points."""
