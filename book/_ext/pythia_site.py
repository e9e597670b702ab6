"""Loads the book's Sphinx extension from the checkout that is built, even if another is installed.

It lies outside the packages because Sphinx finds it by its folder: a module of `pythia_book` would
be taken from whichever checkout Python finds first, and so may this file be.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def setup(app: Any) -> dict[str, Any]:
    """Set up the extension of the checkout in which the folder to build lies."""
    places = [Path(app.srcdir), *Path(app.srcdir).parents]
    name = Path(__file__).name
    root = next(
        (place for place in places if (place / "book" / "_ext" / name).is_file()),
        Path(__file__).resolve().parents[2],
    )
    sys.path[:0] = [str(root), str(root / "book")]
    from pythia_book.site import extension

    return extension.setup(app)
