"""What other packages add to this library: found by name, loaded on demand.

The library stays small because it does not know the book: a package registers its command-line
commands, corpora and kinds of runs as entry points in the groups `pythia_core.commands`,
`pythia_core.corpora` and `pythia_core.runs`. The book's own table (`pythia_book.EXTENSIONS`) counts
too, so that a checkout works without being installed.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path


@functools.cache
def registered(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of everything in the group `pythia_core.<group>`."""
    full_group = f"pythia_core.{group}"
    table = _book_table().get(group, {})
    points = {name: EntryPoint(name, value, full_group) for name, value in table.items()}
    return points | {point.name: point for point in entry_points(group=full_group)}


def _book_table() -> dict[str, dict[str, str]]:
    """The book's table; a checkout's book is put on the path, of child processes too."""
    book = Path(__file__).resolve().parents[2] / "book"
    if (book / "pythia_book" / "__init__.py").is_file() and str(book) not in sys.path:
        sys.path.append(str(book))
        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{path}{os.pathsep}{book}" if path else str(book)
    try:
        return importlib.import_module("pythia_book").EXTENSIONS
    except ModuleNotFoundError:
        return {}
