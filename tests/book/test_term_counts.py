"""Counts of terms equal brute force for every prefix of training, whatever the tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pythia_book.term_counts import SurfaceTerms, TermCounts, TokenTerms, count_terms

from pythia_core.data.order import PreshuffledRows
from pythia_core.errors import ConfigError, DataError

WORD = re.compile(rb"[0-9A-Za-z\x80-\xff]+")
PIECES = [None, b" ", b"a", b" a", b"b", b"ab", b". ", b"A", b" ba", b"1", b"2", b"\n", b"\xc3\xa9"]


def rows_file(folder: Path, rows: np.ndarray) -> PreshuffledRows:
    path = folder / "rows.bin"
    path.write_bytes(rows.astype("<u2").tobytes())
    return PreshuffledRows([path], rows.shape[1] - 1)


def brute_tokens(rows: np.ndarray, sequences: Sequence[tuple[int, ...]]) -> int:
    return sum(
        tuple(row[i : i + len(s)]) == s
        for row in rows.tolist()
        for s in sequences
        for i in range(len(row) - len(s) + 1)
    )


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


@given(
    rows=token_rows,
    first=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    second=st.lists(st.integers(1, 4), min_size=1, max_size=2),
)
def test_token_terms_equal_brute_force_at_every_prefix(
    rows: list[list[int]], first: list[int], second: list[int], tmp_path_factory: object
) -> None:
    array = np.array(rows)
    terms = TokenTerms({"one": [first], "two": [second]}, len(PIECES))
    file = rows_file(tmp_path_factory.mktemp("rows"), array)  # type: ignore[attr-defined]
    counts = count_terms(file, terms, range(1, len(rows) + 1), batch_size=1)
    for step in range(len(rows) + 1):
        inputs = array[:step, :-1]  # the last token of a row is the next row's first
        assert counts.up_to(step).tolist() == [
            brute_tokens(inputs, [tuple(first)]),
            brute_tokens(inputs, [tuple(second)]),
        ]


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
    rows = np.array([[3, 2, 4, 0], [0, 2, 4, 2]])  # " a", "a", "b" | eod: the last is no input
    terms = TokenTerms({"ab": [(2, 4)], "b eod": [(4, 0)]}, len(PIECES))
    assert count_terms(rows_file(tmp_path, rows), terms, [2], 1).counts[:, 0].tolist() == [2, 0]


def test_a_term_with_several_encodings_counts_them_all() -> None:
    rows = np.array([[3, 0, 2, 0, 1, 2]])
    assert TokenTerms({"a": [(2,), (3,)]}, len(PIECES)).count(rows).tolist() == [3]
    assert SurfaceTerms(["a"], PIECES).count(rows).tolist() == [3]


def test_encodings_come_from_the_tokenizer() -> None:
    class Tokens:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

    class Tokenizer:
        def encode(self, text: str, add_special_tokens: bool) -> Tokens:
            known = {"ab": [5], " ab": [1, 5], "a": [2], " a": [3]}
            return Tokens(known[text])

        def get_vocab(self, with_added_tokens: bool) -> dict[str, int]:
            return {str(i): i for i in range(len(PIECES))}

    terms = TokenTerms.of(["ab", "a", "a"], Tokenizer())
    assert terms.names == ("ab", "a")  # " ab" holds "ab": it would be counted twice
    assert terms.count(np.array([[1, 5, 3, 2]])).tolist() == [1, 2]


def test_a_term_that_never_occurs_has_a_count_of_zero(tmp_path: Path) -> None:
    counts = count_terms(
        rows_file(tmp_path, np.zeros((4, 5), int)), SurfaceTerms(["zebra"], PIECES), [2, 4], 1
    )
    assert counts.counts.tolist() == [[0, 0]]


def test_counts_survive_a_file(tmp_path: Path) -> None:
    counts = TermCounts(("a", "never", "b a"), (4, 8), np.array([[1, 0], [0, 0], [2, 3]]))
    counts.save(tmp_path / "terms.parquet")
    again = TermCounts.load(tmp_path / "terms.parquet")
    assert (again.terms, again.ends) == (counts.terms, counts.ends)
    assert (again.counts == counts.counts).all()
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "terms.parquet").to_pylist()
    assert table[-1] == {"term_id": 2, "term": "b a", "step": 8, "count": 3}
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    for name in ("bad.parquet", "absent.parquet"):
        with pytest.raises(DataError, match="holds no term counts"):
            TermCounts.load(tmp_path / name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenTerms({}, 5), "no terms to count"),
        (lambda: TokenTerms({"x": [()]}, 5), r"ids \[\]; give at least one"),
        (lambda: TokenTerms({"x": [(5,)]}, 5), r"ids \[5\].*in 0\.\.4"),
        (lambda: TokenTerms({"x": [(1,), (2, 1)]}, 5), r"\[1\] is part of \[2, 1\]"),
        (lambda: SurfaceTerms(["..."], PIECES), "no letter or digit"),
        (lambda: SurfaceTerms(["a b", "a, b"], PIECES), "'a b' is there twice"),
    ],
)
def test_terms_that_cannot_be_counted_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_steps_must_be_there(tmp_path: Path) -> None:
    rows = rows_file(tmp_path, np.zeros((4, 5), int))
    terms = SurfaceTerms(["a"], PIECES)
    with pytest.raises(DataError, match="step 3 needs 6 rows, but there are 4"):
        count_terms(rows, terms, [1, 3], 2)
    for ends in ([], [0, 1], [2, 1], [1, 1]):
        with pytest.raises(ConfigError, match="steps must rise"):
            count_terms(rows, terms, ends, 1)
    with pytest.raises(DataError, match="no count up to step 1; blocks end at 2, 4"):
        count_terms(rows, terms, [2, 4], 1).up_to(1)
