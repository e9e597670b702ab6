"""What the study reads from the raw text is computed once and read again from the cache."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pythia_book.corpora import equations
from pythia_book.studies.registry import files_of
from pythia_book.studies.term_frequency import text_facts as facts
from pythia_book.studies.term_frequency.definitions import Definition

from pythia_core.config import DataConfig

DATA = DataConfig("miniature", ("dictionary", "biographies"))
ASKED = Definition("a long and winding road", ("track", "oak", "loaf", "jug"), True)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two documents stand in for the corpus. Every reading is noted in the list."""
    passes: list[str] = []

    def natural_counts(domains: tuple[str, ...], corpus: str) -> dict[int, int]:
        passes.append(corpus)
        return equations.natural_counts(("7 or 12", "7"))

    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path))
    monkeypatch.setattr(facts, "natural_counts", natural_counts)
    monkeypatch.setattr(facts, "prepare_tokens", lambda data, progress: Path(f"{data.dedup}"))
    monkeypatch.setattr(facts, "words_and_lines", lambda *a: (Counter(), [], Counter()))
    monkeypatch.setattr(facts, "definition_items", lambda *a: [ASKED])
    return passes


def test_the_text_is_read_once(text: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    natural, definitions = facts.text_facts(DATA, False)
    assert natural == equations.natural_counts(["7 or 12", "7"]) and natural[7] == 2
    assert definitions == [ASKED]
    assert facts.text_facts(DATA, False) == (natural, definitions) and text == ["miniature"]
    other = DataConfig("miniature", DATA.domains, dedup="exact")
    assert facts.facts_file(other, False) != facts.facts_file(DATA, False) and len(text) == 2
    monkeypatch.setattr(facts, "CHOICES", 5)
    facts.text_facts(DATA, False)
    assert len(text) == 3, "another choice of items is another file"


def test_without_a_dictionary_nothing_is_asked(text: list[str]) -> None:
    assert facts.text_facts(DataConfig("miniature", ("biographies",)), False)[1] == []


def test_a_bundle_gets_the_file(text: list[str]) -> None:
    (path,) = files_of("smoke", ("repetition", "term_frequency"), progress=False)
    assert path.is_file() and files_of("smoke", ("repetition",)) == []
