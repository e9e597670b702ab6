"""Loads the book's Sphinx extension from this checkout, also where another one is installed.

It lies outside the packages because Sphinx finds it by its folder: a module of `pythia_book` would
be taken from whichever checkout Python finds first.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "book")]

from pythia_book.site.extension import setup  # noqa: E402

__all__ = ["setup"]
