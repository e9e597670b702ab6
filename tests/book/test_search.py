"""A text is found in exactly the rows that contain it, with the update that read them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pythia_book import search
from pythia_book.search import Hit, SurfaceMatcher, TokenMatcher, find_text, quote

from pythia_core.data.tokenizer import encode_documents, token_bytes, train_bpe
from pythia_core.errors import ConfigError, DataError

PIECES: list[bytes | None] = [None, b"a", b"b", b"ab", b" a", b" B", "\u00e9".encode(), b"\xc3"]
PIECES += [b"\xa9", b"", None]


def brute_tokens(rows: np.ndarray, sequences: list[list[int]]) -> list[tuple[int, int, int]]:
    found = {}
    for r, row in enumerate(rows.tolist()):
        for c in range(len(row)):
            sizes = [len(s) for s in sequences if row[c : c + len(s)] == s]
            if sizes:
                found[r, c] = max(sizes)
    return [(*place, size) for place, size in found.items()]


def brute_surface(rows: np.ndarray, text: str, fold: bool) -> list[tuple[int, int, int]]:
    """Search byte by byte; special tokens and the end of a row end every match."""
    needle = text.encode()
    found = []
    for r, row in enumerate(rows.tolist()):
        letters: list[tuple[int, int]] = []
        for c, i in enumerate(row):
            piece = PIECES[i] if i < len(PIECES) else None
            letters += [(c, byte) for byte in piece] if piece is not None else [(c, -1)]
        for k in range(len(letters) - len(needle) + 1):
            window = letters[k : k + len(needle)]
            got = bytes(b for _, b in window) if min(b for _, b in window) >= 0 else b""
            if (got.lower() == needle.lower()) if fold else (got == needle):
                found.append((r, window[0][0], window[-1][0] - window[0][0] + 1))
    return found


rows_of_ids = st.integers(1, 12).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 12), min_size=width, max_size=width), min_size=1, max_size=9
    )
)


@settings(max_examples=200, deadline=None)
@given(
    rows=rows_of_ids,
    sequences=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), min_size=1),
)
def test_tokens_are_found_as_by_brute_force(
    rows: list[list[int]], sequences: list[list[int]]
) -> None:
    ids = np.array(rows, np.uint16)
    assert TokenMatcher(sequences)(ids) == brute_tokens(ids, sequences)


@settings(max_examples=300, deadline=None)
@given(
    rows=rows_of_ids,
    text=st.text("abB \u00e9", min_size=1, max_size=4),
    fold=st.booleans(),
)
def test_surfaces_are_found_as_by_brute_force(rows: list[list[int]], text: str, fold: bool) -> None:
    ids = np.array(rows, np.uint16)
    matcher = SurfaceMatcher(text, PIECES, ignore_case=fold)
    assert matcher(ids) == brute_surface(ids, text, fold)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 99),
    batch_size=st.integers(1, 5),
    chunk=st.sampled_from([1, 20, 64, 10**6]),
    span=st.tuples(st.integers(0, 7), st.integers(1, 8)).filter(lambda s: s[0] < s[1]),
)
def test_steps_do_not_depend_on_how_rows_are_read(
    seed: int, batch_size: int, chunk: int, span: tuple[int, int]
) -> None:
    rows = np.random.RandomState(seed).randint(0, 3, (8 * batch_size, 6))
    asked = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return rows[start:stop]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "CHUNK", chunk)
        hits = list(find_text(read, TokenMatcher([[1, 2]]), batch_size, *span))
    first, last = span[0] * batch_size, span[1] * batch_size
    expected = [
        Hit((first + r) // batch_size, first + r, c, n)
        for r, c, n in brute_tokens(rows[first:last], [[1, 2]])
    ]
    assert hits == expected
    assert asked[0][0] == first and asked[-1][1] == last, "only the rows asked for are read"


def test_a_search_that_stops_early_reads_no_more() -> None:
    asked = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append(start)
        return np.full((stop - start, 4), 7)

    hit = next(find_text(read, TokenMatcher([[7]]), 2, 3, 10**9))
    assert hit == Hit(3, 6, 0, 1) and asked == [6]


def test_words_as_a_tokenizer_splits_them() -> None:
    texts = ["The cat sat. A cat is a cat.", "concatenate the catalog", "caf\u00e9 cat"]
    tokenizer = train_bpe(texts * 20, 290)
    width = 24
    encoded = [[*ids, 0][:width] for ids in encode_documents(tokenizer, texts)]
    rows = np.array([ids + [0] * (width - len(ids)) for ids in encoded])
    pieces = token_bytes(tokenizer)

    def count(text: str, **settings: bool) -> list[int]:
        found = SurfaceMatcher(text, pieces, **settings)(rows)
        return [sum(r == row for r, _, _ in found) for row in range(3)]

    assert count("cat") == [3, 2, 1] and count("CAT") == [0, 0, 0]
    assert count("CAT", ignore_case=True) == [3, 2, 1]
    assert count("cafe\u0301") == [0, 0, 1], "a needle is composed like the data"
    assert len(TokenMatcher.of("cafe\u0301 cat", tokenizer)(rows)) == 1
    with pytest.raises(ConfigError, match="not valid text at character 3; type it in UTF-8"):
        SurfaceMatcher("caf\udce9", pieces)
    with pytest.raises(ConfigError, match="not valid text"):
        TokenMatcher.of("caf\udce9", tokenizer)
    decode = tokenizer.decode
    for row, column, n in TokenMatcher.of("cat", tokenizer)(rows):
        assert decode(rows[row, column : column + n].tolist()).strip() == "cat"
    row, column, n = SurfaceMatcher("sat. A", pieces)(rows)[0]
    shown = quote(rows[row], Hit(0, row, column, n), decode, around=30)
    assert shown.startswith("The cat[[ sat. A]] cat is a cat.")


@pytest.mark.parametrize("ids", [[], [[]], [[1], []]])
def test_an_empty_text_is_refused(ids: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="no tokens"):
        TokenMatcher(ids)
    with pytest.raises(ConfigError, match="empty"):
        SurfaceMatcher("", PIECES)
    for bad in ((3, 3, 1), (-1, 3, 1), (0, 3, 0)):
        with pytest.raises(DataError, match="first step"):
            next(
                find_text(lambda a, b: np.zeros((b - a, 3)), TokenMatcher([[1]]), bad[2], *bad[:2])
            )
