"""Find the commands, corpora and kinds of runs that other packages add to the library.

A package registers its additions as entry points in the groups `pythia_core.commands`,
`pythia_core.corpora` and `pythia_core.runs`. The book has a table instead
(`pythia_book.EXTENSIONS`), which also works in a checkout that is not installed.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from pythia_core.util.files import checkout


@functools.cache
def registered(group: str) -> dict[str, EntryPoint]:
    """Map each name registered in the group `pythia_core.<group>` to its entry point."""
    full_group = f"pythia_core.{group}"
    table = _book_table().get(group, {})
    points = {point.name: point for point in entry_points(group=full_group)}
    return points | {name: EntryPoint(name, value, full_group) for name, value in table.items()}


def _book_table() -> dict[str, dict[str, str]]:
    """Return the book's table EXTENSIONS; {} without a book.

    A checkout and its child processes use the checkout's own book, even if another is installed.
    """
    root = checkout()
    if root and (root / "book" / "pythia_book").is_dir():
        book = root / "book"
        spec = find_spec("pythia_book")
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parents[1] != book:
            sys.path.insert(0, str(book))
            path = os.environ.get("PYTHONPATH")
            os.environ["PYTHONPATH"] = f"{book}{os.pathsep}{path}" if path else str(book)
    try:
        return importlib.import_module("pythia_book").EXTENSIONS
    except ModuleNotFoundError:
        return {}
