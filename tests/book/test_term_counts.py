"""Counts of terms equal brute force for every prefix of training, whatever the tokens."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pythia_book.term_counts import SurfaceTerms, TermCounts, count_terms

from pythia_core.data.order import PreshuffledRows
from pythia_core.errors import ConfigError, DataError

WORD = re.compile(rb"[0-9A-Za-z\x80-\xff]+")
PIECES = [None, b" ", b"a", b" a", b"b", b"ab", b". ", b"A", b" ba", b"1", b"2", b"\n", b"\xc3\xa9"]


def rows_file(folder: Path, rows: np.ndarray) -> PreshuffledRows:
    path = folder / "rows.bin"
    path.write_bytes(rows.astype("<u2").tobytes())
    return PreshuffledRows([path], rows.shape[1] - 1)


def brute_words(rows: np.ndarray, term: str, ignore_case: bool = False) -> int:
    def split(raw: bytes) -> list[bytes]:
        return WORD.findall(raw.lower() if ignore_case else raw)

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
    with pytest.raises(DataError, match="step 3 needs 6 rows, but the data have only 4"):
        count_terms(rows, terms, [1, 3], 2)
    for ends in ([], [0, 1], [2, 1], [1, 1]):
        with pytest.raises(ConfigError, match="steps must be at least 1 and in ascending order"):
            count_terms(rows, terms, ends, 1)
    with pytest.raises(DataError, match="no counts up to step 1, only up to the steps 2, 4"):
        count_terms(rows, terms, [2, 4], 1).up_to(1)
