"""What CITATION.cff says: authors, licence and version of the book, and how to cite it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError


@dataclass(frozen=True)
class Citation:
    """How to cite the book and the paper that it re-runs."""

    title: str
    authors: tuple[str, ...]
    date: str
    """ISO date of the release."""
    version: str
    license: str
    """SPDX identifier."""
    bibtex: str
    """The book's entry for reference managers; with an address only if the file has one."""
    paper_bibtex: str
    """The Pythia paper's entry."""


@functools.cache
def citation(root: Path) -> Citation:
    """Read CITATION.cff in the folder `root`.

    Raises:
        ExtensionError: the file is missing or lacks a key.
    """
    import yaml

    try:
        given = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
        return Citation(
            given["title"],
            tuple(_name(person) for person in given["authors"]),
            *(str(given[key]) for key in ("date-released", "version", "license")),
            book_entry(given),
            paper_entry(given["references"][0]),
        )
    except (OSError, KeyError, TypeError, IndexError, yaml.YAMLError) as error:
        raise ExtensionError(
            f"CITATION.cff must name the book, its authors and the paper: {error!r}"
        ) from None


def _name(person: dict[str, str]) -> str:
    return person.get("name") or f"{person['given-names']} {person['family-names']}"


def _authors(people: Sequence[dict[str, str]]) -> str:
    names = [
        f"{p['family-names']}, {p['given-names']}" if "family-names" in p else f"{{{p['name']}}}"
        for p in people
    ]
    return " and ".join(names)


def _entry(kind: str, key: str, fields: dict[str, object]) -> str:
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}\n}}"


def paper_entry(reference: dict[str, Any]) -> str:
    """Return the BibTeX entry of the Pythia paper, a reference in CITATION.cff."""
    fields = {
        "title": reference["title"],
        "author": _authors(reference["authors"]),
        "booktitle": reference["collection-title"],
        "volume": reference["volume"],
        "pages": f"{reference['start']}--{reference['end']}",
        "year": reference["year"],
    }
    return _entry("inproceedings", "biderman2023pythia", fields)


def book_entry(given: dict[str, Any]) -> str:
    """Return the BibTeX entry of the book, from the content of CITATION.cff."""
    fields = {
        "title": given["title"],
        "author": _authors(given["authors"]),
        "version": given["version"],
        "year": str(given["date-released"])[:4],
        **{key: given[key] for key in ("url", "doi") if key in given},
    }
    return _entry("software", "pythia_book", fields)
