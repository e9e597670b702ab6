"""Counts of terms equal brute force for every prefix of training, whatever the tokens."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pythia_book.term_counts import SurfaceTerms, TermCounts, _in_words, count_terms

from pythia_core.data.order import PreshuffledRows
from pythia_core.errors import ConfigError, DataError

WORD = re.compile(r"[^\W_]+")
PIECES = [None, b" ", b"a", b" a", b"b", b"ab", b". ", b"A", b" ba", b"1", b"2", b"\n", b"\xc3\xa9"]
PIECES += [b"\xe2\x80", b"\x9d", b"\xc3", b"\xa9", b"\xc2\xa0", "\u4f60".encode(), b"\xf0\x9f"]
"""Tokens, some of which have only a part of a character: a quotation mark, e with an accent."""


def rows_file(folder: Path, rows: np.ndarray) -> PreshuffledRows:
    path = folder / "rows.bin"
    path.write_bytes(rows.astype("<u2").tobytes())
    return PreshuffledRows([path], rows.shape[1] - 1)


def brute_words(rows: np.ndarray, term: str, ignore_case: bool = False) -> int:
    def split(raw: bytes) -> list[str]:
        raw = raw.lower() if ignore_case else raw
        return WORD.findall(raw.decode("utf-8", "replace"))

    wanted, found = split(term.encode()), 0
    for row in rows.tolist():
        words = split(b"".join(PIECES[i] or b"\n" for i in row))
        found += sum(
            words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1)
        )
    return found


token_rows = st.integers(1, 12).flatmap(
    lambda n: st.lists(
        st.lists(st.integers(0, len(PIECES) - 1), min_size=9, max_size=9), min_size=n, max_size=n
    )
)


@settings(deadline=None)
@given(rows=token_rows)
def test_counts_equal_brute_force_at_every_prefix(
    rows: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    array = np.array(rows)
    terms = SurfaceTerms(["a", "ab", "b a"], PIECES)
    file = rows_file(tmp_path_factory.mktemp("rows"), array)
    counts = count_terms(file, terms, range(1, len(rows) + 1), batch_size=1)
    for step in range(len(rows) + 1):
        inputs = array[:step, :-1]  # the last token of a row is the next row's first
        assert counts.up_to(step).tolist() == [brute_words(inputs, name) for name in terms.names]


@settings(deadline=None)
@given(rows=token_rows, ignore_case=st.booleans())
def test_surface_terms_equal_brute_force(rows: list[list[int]], ignore_case: bool) -> None:
    array = np.array(rows)
    names = ["a", "ab", "a b", "b a", "ba", "1", "12", "a a", "\u00e9", "ab1", "a ba a"]
    terms = SurfaceTerms(names, PIECES, ignore_case)
    wanted = [brute_words(array, name, ignore_case) for name in names]
    assert terms.count(array).tolist() == wanted


def count(text: str, *terms: str, ignore_case: bool = False) -> list[int]:
    """Count terms in a text with one token per byte."""
    pieces = [None, *(bytes([byte]) for byte in range(256))]
    rows = np.frombuffer(text.encode(), np.uint8).astype(int)[None] + 1
    return SurfaceTerms(terms, pieces, ignore_case).count(rows).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "\u201cCourt\u201d", "\u2018Court\u2019", "\u00abCourt\u00bb", "\u201eCourt\u201f",
        "Court\u2014", "\u2013Court\u2013", "Court\u2026", "\u00a0Court\u202f", "\ufeffCourt",
        "\u2022Court", "\u3010Court\u3011", "Court\u00ad", "\u200bCourt", "\U0001f600Court",
        "Court\u00d7", "Court\u2028", "\u00bfCourt?", "Court\u00ae", "Court\u20ac", "\u2039Court",
    ],
)  # fmt: skip
def test_typographic_signs_separate_words(text: str) -> None:
    assert count(f"A {text} of law, a court.", "Court", "court") == [1, 1]
    assert count(f"New{text.replace('Court', '') or ' '}York", "New York") == [1]


@pytest.mark.parametrize(
    "word", ["Courte", "Court\u00e9", "Court\u0301", "Court\u4f60", "Court\u00b2"]
)
def test_letters_marks_and_numbers_do_not(word: str) -> None:
    assert count(f"A {word} of law", "Court") == [0]
    assert count(f"A {unicodedata.normalize('NFC', word)} of law", word) == [1]


def test_terms_are_read_in_nfc_like_the_data() -> None:
    """macOS gives file names in NFD, and so do some editors."""
    for word in ("Garc\u00eda", "\u1ec7", "\uac01", "\u00c5ngstr\u00f6m"):
        typed = unicodedata.normalize("NFD", word)
        assert typed != word and count(f"Se\u00f1or {word} y {word}.", typed) == [2]
        both = f"the terms {word!r}, {typed!r} have the same words"
        with pytest.raises(ConfigError, match=both):
            SurfaceTerms([word, typed], PIECES)


DAMAGES = (b"\xc1\xa1", b"\xe0\x81\xa1", b"\xf0\x80\x81\xa1", b"\xed\xa0\x80", b"\xf4\x90\x80\x80")
"""Too long forms of "a", a surrogate, and a code point that is too high: none of it is UTF-8."""
damaged = st.lists(
    st.one_of(
        st.text(max_size=3).map(lambda text: text.encode("utf-8", "replace")),
        st.sampled_from([*DAMAGES, "\u00e9\u4f60\U00020000a".encode()]),
        st.binary(max_size=3),
    )
).map(b"".join)


@settings(max_examples=500, deadline=None)
@given(raw=damaged, start=st.integers(0, 3), end=st.integers(0, 3))
def test_bytes_that_are_not_text_separate_words(raw: bytes, start: int, end: int) -> None:
    raw = raw[start : max(start, len(raw) - end)]  # may cut a character
    expected = []
    for character in raw.decode("utf-8", "surrogateescape"):
        is_word = unicodedata.category(character)[0] in "LMN"
        expected += [is_word] * len(character.encode("utf-8", "surrogateescape"))
    assert _in_words(np.frombuffer(raw, np.uint8)).tolist() == expected


@pytest.mark.parametrize("damage", DAMAGES)
def test_too_long_forms_are_no_letters(damage: bytes) -> None:
    assert not _in_words(np.frombuffer(damage, np.uint8)).any()


def test_counts_do_not_depend_on_how_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(0, len(PIECES), (200, 17))
    terms = SurfaceTerms(["a", "b a", "12"], PIECES)
    whole = terms.count(array)
    assert whole.all()
    assert (whole == sum(terms.count(part) for part in np.array_split(array, 13))).all()


def test_a_term_that_crosses_the_end_of_a_row_is_not_counted(tmp_path: Path) -> None:
    rows = np.array([[3, 1, 4, 0], [1, 2, 3, 4]])  # " a", " ", "b" | eod; " ", "a", " a" | "b"
    terms = SurfaceTerms(["a b", "b a", "a a", "ab"], PIECES)
    counts = count_terms(rows_file(tmp_path, rows), terms, [2], 1).counts
    assert counts[:, 0].tolist() == [1, 0, 1, 0]


def test_a_word_in_several_encodings_counts_in_all() -> None:
    rows = np.array([[3, 0, 2, 0, 1, 2]])
    assert SurfaceTerms(["a"], PIECES).count(rows).tolist() == [3]


def test_a_term_that_never_occurs_has_a_count_of_zero(tmp_path: Path) -> None:
    counts = count_terms(
        rows_file(tmp_path, np.zeros((4, 5), int)), SurfaceTerms(["zebra"], PIECES), [2, 4], 1
    )
    assert counts.counts.tolist() == [[0, 0]]


def test_counts_as_a_file(tmp_path: Path) -> None:
    counts = TermCounts(("a", "never", "b a"), (4, 8), np.array([[1, 0], [0, 0], [2, 3]]))
    counts.save(tmp_path / "terms.parquet")
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "terms.parquet").to_pylist()
    assert [tuple(row.values()) for row in table] == [
        (0, "a", 4, 1),
        (2, "b a", 4, 2),
        (2, "b a", 8, 3),
    ]
    assert list(table[0]) == ["term_id", "term", "step", "count"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SurfaceTerms([], PIECES), "no terms to count"),
        (lambda: SurfaceTerms(["..."], PIECES), "no letter or digit"),
        (lambda: SurfaceTerms(["\u201c\u2014\u00a0"], PIECES), "no letter or digit"),
        (lambda: SurfaceTerms(["caf\udce9"], PIECES), "not valid text at character 3; type it in"),
        (
            lambda: SurfaceTerms(["a b", "a, b"], PIECES),
            "the terms 'a b', 'a, b' have the same words",
        ),
    ],
)
def test_terms_that_cannot_be_counted_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_unusable_steps_are_refused(tmp_path: Path) -> None:
    rows = rows_file(tmp_path, np.zeros((4, 5), int))
    terms = SurfaceTerms(["a"], PIECES)
    with pytest.raises(DataError, match="step 3 needs 6 rows, but the data has only 4"):
        count_terms(rows, terms, [1, 3], 2)
    for ends in ([], [0, 1], [2, 1], [1, 1]):
        with pytest.raises(ConfigError, match="the steps must be positive and strictly"):
            count_terms(rows, terms, ends, 1)
    with pytest.raises(DataError, match="no counts up to step 1, only up to the steps 2, 4"):
        count_terms(rows, terms, [2, 4], 1).up_to(1)
