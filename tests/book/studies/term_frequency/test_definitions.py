"""Items on definitions: which definitions are asked, and with which wrong words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pythia_book.corpora import miniature
from pythia_book.studies.term_frequency import definitions
from pythia_book.studies.term_frequency.definitions import (
    Definition,
    DefinitionMeasurement,
    chosen_definitions,
    definition_items,
    definitions_file,
    entries,
    words_and_lines,
)
from pythia_book.studies.term_frequency.params import WORD_BINS

from pythia_core.config import DataConfig
from pythia_core.data.corpus import Document
from pythia_core.errors import DataError
from pythia_core.util.files import fraction

LETTERS = "abcdefghijklmnopqrst"
WORDS = [a + b for a in LETTERS for b in LETTERS]
LINES = [f"{word}: the {i}th thing of its kind; an example" for i, word in enumerate(WORDS)]
FREQUENCY = {word: int(1.03**i) for i, word in enumerate(WORDS)}


def test_an_entry_is_a_single_word_with_a_definition() -> None:
    lines = ["entity: that which is perceived", "two, words: a thing of two kinds",
             "short: a thing", "Upper: that which is no word here", ""]  # fmt: skip
    assert entries(lines) == {lines[0]: "entity"}


def test_items_cover_every_bin_with_distractors_of_similar_frequency() -> None:
    training = Counter({line: 1 + (i % 10 == 0) for i, line in enumerate(LINES) if i % 2})
    items = definition_items(LINES, training, FREQUENCY, per_bin=12)
    assert items == definition_items(LINES[::-1], training, FREQUENCY, per_bin=12)
    groups = Counter(
        (item.read, sum(FREQUENCY[item.words[0]] >= low for low in WORD_BINS)) for item in items
    )
    assert {group for _, group in groups} == set(range(1, len(WORD_BINS) + 1))
    assert max(groups.values()) <= 12
    for item in items:
        right, *wrong = item.words
        assert len({*item.words}) == 4
        assert item.text == f"the {WORDS.index(right)}th thing of its kind"
        assert item.read == bool(training[LINES[WORDS.index(right)]])
        for word in wrong:  # at most 40 ranks away: a factor of 1.03**40, and ties
            assert 0.2 < (FREQUENCY[word] + 1) / (FREQUENCY[right] + 1) < 5


def test_definitions_read_several_times_are_not_asked() -> None:
    training = Counter(dict.fromkeys(LINES, 2))
    assert definition_items(LINES, training, FREQUENCY) == []


def test_too_few_words_are_an_error() -> None:
    with pytest.raises(
        DataError, match=r"only 2 different words .* include the domain 'dictionary'"
    ):
        definition_items(LINES[:2], Counter(LINES), FREQUENCY)


def test_items_that_do_not_fit_are_left_out() -> None:
    class Encoding:
        def __init__(self, text: str) -> None:
            self.ids = list(text.encode())

    class Data:
        eod_id = 0

        class tokenizer:
            @staticmethod
            def encode(text: str, add_special_tokens: bool) -> Encoding:
                return Encoding(text)

    items = [Definition("a short one", ("aa", "bb", "cc", "dd"), True),
             Definition("a long one " * 20, ("aa", "bb", "cc", "dd"), True)]  # fmt: skip
    measurement = DefinitionMeasurement.of(items, Data(), 40)  # type: ignore[arg-type]
    assert measurement.items == (items[0],)
    assert len(measurement.requests) == 4
    none = DefinitionMeasurement((), (), 40)
    assert none(object(), 1)["choice"].shape == (0,)  # type: ignore[arg-type]
    assert none.digest != measurement.digest


@pytest.mark.parametrize("domain", miniature.GENERATED)
def test_words_that_stand_mostly_in_generated_text_are_left_out(
    domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [
        Document("biographies", "Tenth " * 9 + "more " * 8 + "natural copied"),
        Document("biographies", "copied"),  # its domain is that of its source
        Document(domain, "tenth more only"),
    ]
    monkeypatch.setattr(definitions, "open_corpus", lambda data, progress: iter(documents))
    data = DataConfig("miniature", ("biographies", domain), heldout_fraction=0.0)
    frequency, lines, training = words_and_lines(data)
    assert frequency == {"tenth": 10, "natural": 1, "copied": 2}, "more than a tenth is left out"
    assert (lines, training) == ([], Counter())


def test_held_out_text_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document("biographies", f"word {word}") for word in WORDS]
    monkeypatch.setattr(definitions, "open_corpus", lambda data, progress: iter(documents))
    data = DataConfig("miniature", ("biographies",), heldout_fraction=0.1)
    frequency = words_and_lines(data)[0]
    kept = [word for word in WORDS if fraction(f"word {word}") >= 0.1]
    assert {*frequency} == {"word", *kept} and 0 < len(WORDS) - len(kept) < 80
    assert frequency["word"] == len(kept)


@pytest.mark.wheels
def test_lines_and_words_of_the_corpus() -> None:
    data = DataConfig("miniature", ("dictionary", "copies"))
    frequency, lines, training = words_and_lines(data)
    assert len(lines) > 100_000 and sum(training.values()) > 10_000
    line_set = set(lines)
    # the rest are edited copies
    assert sum(line in line_set for line in training) > 0.7 * len(training)
    items = definition_items(lines, training, frequency, per_bin=20)
    assert {item.read for item in items} == {True, False}
    assert np.mean([frequency[item.words[0]] for item in items]) > 10
    without = DataConfig("miniature", ("biographies",))
    assert words_and_lines(without)[1:] == ([], Counter())


# --- the file in the cache -------------------------------------------------------------------

DATA = DataConfig("miniature", ("dictionary", "biographies"))
ASKED = Definition("a long and winding road", ("track", "oak", "loaf", "jug"), True)


@pytest.fixture
def passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The corpora that were read; no corpus is really read, and the same item is always chosen."""
    read: list[str] = []

    def no_words(data: DataConfig, progress: bool) -> tuple[Counter, list, Counter]:
        read.append(data.corpus)
        return Counter(), [], Counter()

    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path))
    monkeypatch.setattr(definitions, "prepare_tokens", lambda data, progress: Path(data.dedup))
    monkeypatch.setattr(definitions, "words_and_lines", no_words)
    monkeypatch.setattr(definitions, "definition_items", lambda *a: [ASKED])
    return read


def test_the_text_is_read_once(passes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_definitions(DATA, False) == [ASKED] == chosen_definitions(DATA, False)
    assert passes == ["miniature"]
    other = DataConfig("miniature", DATA.domains, dedup="exact")
    assert definitions_file(other, False) != definitions_file(DATA, False) and len(passes) == 2
    monkeypatch.setattr(definitions, "CHOICES", 5)
    chosen_definitions(DATA, False)
    assert len(passes) == 3, "another choice of items is another file"


def test_without_a_dictionary_nothing_is_asked(passes: list[str]) -> None:
    assert chosen_definitions(DataConfig("miniature", ("biographies",)), False) == []
    assert not passes
