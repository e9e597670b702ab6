"""Utilities for files, worker processes, progress bars, stopping, the machine, and extensions."""
