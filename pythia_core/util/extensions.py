"""What other packages add to this library, found by name and loaded when it is asked for.

The library stays small because it knows none of the book: a package registers its command-line
commands, its corpora and its kinds of runs as entry points of the groups `pythia_core.commands`,
`pythia_core.corpora` and `pythia_core.runs`. Where nothing is registered, because the checkout is
on the path without being installed, the book's own table (`pythia_book.EXTENSIONS`) is used.
"""

from __future__ import annotations

import functools
import importlib
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path


@functools.cache
def registered(group: str) -> dict[str, EntryPoint]:
    """Name -> entry point of everything in the group `pythia_core.<group>`; `load()` imports it."""
    whole = f"pythia_core.{group}"
    found = {point.name: point for point in entry_points(group=whole)}
    if found:
        return found
    table = _table_of_the_checkout().get(group, {})
    return {name: EntryPoint(name, value, whole) for name, value in table.items()}


def _table_of_the_checkout() -> dict[str, dict[str, str]]:
    """The book's table, also where only the top of the checkout is on the path."""
    book = Path(__file__).resolve().parents[2] / "book"
    if (book / "pythia_book" / "__init__.py").is_file() and str(book) not in sys.path:
        sys.path.append(str(book))
    try:
        return importlib.import_module("pythia_book").EXTENSIONS
    except ModuleNotFoundError:
        return {}
