"""Reads CITATION.cff: authors, license and version of the book, and how to cite it."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sphinx.errors import ExtensionError

PAPER = "biderman2023pythia"
"""The key of the Pythia paper in book/references.bib."""
REPOSITORY, BRANCH = "PYTHIA_BOOK_REPOSITORY", "PYTHIA_BOOK_BRANCH"
"""Environment variables: the address of the repository that the site belongs to, and its branch."""
SITE = "PYTHIA_BOOK_URL"
"""An environment variable: the address at which the site is published."""


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
    """Read CITATION.cff and book/references.bib in the checkout `root`.

    Raises:
        ExtensionError: a file is missing or lacks a key.
    """
    import yaml
    from pybtex.database import BibliographyData, PybtexError, parse_file

    try:
        given = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
        paper = parse_file(str(root / "book" / "references.bib")).entries[PAPER]
        return Citation(
            given["title"],
            tuple(_name(person) for person in given["authors"]),
            *(str(given[key]) for key in ("date-released", "version", "license")),
            book_entry(given),
            BibliographyData({PAPER: paper}).to_string("bibtex").strip(),
        )
    except (OSError, KeyError, TypeError, yaml.YAMLError, PybtexError) as error:
        raise ExtensionError(
            f"CITATION.cff must name the book and its authors, and references.bib the paper: "
            f"{error!r}; add what is missing, or restore the files with git"
        ) from None


def repository(root: Path) -> dict[str, str]:
    """Return `url` and `branch` of the book's repository; {} if it is not known.

    They come from REPOSITORY and BRANCH, which a workflow sets, or else from the setting
    `repository` in the book's own _config.yml. Where _config.yml has none, Jupyter Book fills in
    the address and branch of Jupyter Book.
    """
    import yaml

    if url := os.environ.get(REPOSITORY):
        return {"url": url.rstrip("/"), "branch": os.environ.get(BRANCH) or "main"}
    settings = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")) or {}
    return settings.get("repository") or {}


def _name(person: dict[str, str]) -> str:
    return person.get("name") or f"{person['given-names']} {person['family-names']}"


def book_entry(given: dict[str, Any]) -> str:
    """Return the BibTeX entry of the book, from the content of CITATION.cff."""
    from pybtex.database import BibliographyData, Entry

    names = map(_name, given["authors"])
    fields = {
        "title": given["title"],
        "author": " and ".join(f"{{{name}}}" for name in names),
        "version": str(given["version"]),
        "year": str(given["date-released"])[:4],
        **{key: str(given[key]) for key in ("url", "doi") if key in given},
    }
    data = BibliographyData({"pythia_book": Entry("software", fields)})
    return data.to_string("bibtex").strip()
