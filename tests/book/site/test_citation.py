"""How to cite the book, and what it says of itself."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from places import ROOT

pytest.importorskip("sphinx", reason="the extra `book` is not installed")

from pythia_book.site import citation as module
from pythia_book.site import staging
from pythia_book.site.citation import book_entry, citation
from sphinx.errors import ExtensionError


def test_the_citation_has_all_authors() -> None:
    book = citation(ROOT)
    assert book.authors and book.license and re.fullmatch(r"\d{4}-\d\d-\d\d", book.date)
    assert all(author in book.bibtex for author in book.authors)
    assert "Biderman, Stella" in book.paper_bibtex and 'volume = "202"' in book.paper_bibtex


def test_an_incomplete_citation_is_named(tmp_path: Path) -> None:
    (tmp_path / "CITATION.cff").write_text("title: A book\n", encoding="utf-8")
    with pytest.raises(ExtensionError, match=r"CITATION\.cff.*authors"):
        citation(tmp_path)


def test_an_address_is_cited_only_if_there_is_one() -> None:
    given = {"title": "T", "version": 1, "date-released": "2026-01-01"}
    book = book_entry(given | {"authors": [{"name": "The authors"}]})
    assert "{The authors}" in book and "2026" in book and "url" not in book and "doi" not in book
    people = [{"family-names": "B", "given-names": "A"}]
    linked = book_entry(given | {"authors": people, "url": "https://example.org"})
    assert "A B" in linked and "https://example.org" in linked


def test_the_front_page_names_the_repository_of_the_reader_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for part in ("CITATION.cff", "book/references.bib"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / part, tmp_path / part)
    monkeypatch.setattr(staging, "ROOT", tmp_path)
    (tmp_path / "_config.yml").write_text("title: A book\n", encoding="utf-8")
    about = staging.about_the_book()
    assert about["book_license"] == "Apache-2.0" and about["book_repository"] == ""
    (tmp_path / "_config.yml").write_text("repository: {url: https://x.y/z}\n", encoding="utf-8")
    assert "[source](https://x.y/z)" in staging.about_the_book()["book_repository"]
    assert module.repository(tmp_path) == {"url": "https://x.y/z"}
