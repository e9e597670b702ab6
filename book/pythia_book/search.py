"""Finds the training rows that contain a text, and thus the updates that read the text.

There are two ways to match:

- *tokens*: match the token ids of the text, encoded with or without a leading space. This is fast,
  but misses occurrences that are tokenized differently, e.g. inside a word.
- *surface*: match the bytes of the text (in NFC, like the data) in the bytes of a row. This finds
  every occurrence within a document, however it is tokenized.

All S+1 tokens of a row are searched. An occurrence does not count if it continues in the next row,
because the model never saw it whole. pythia_book.term_counts counts many terms at once.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pythia_core.errors import ConfigError, DataError
from pythia_core.util.progress import bar

# --- rows as bytes ---------------------------------------------------------------------------


def as_in_data(text: str) -> bytes:
    """Return the bytes of a user's text in NFC, as tokenizers encode text.

    Raises:
        ConfigError: the text is not valid Unicode, e.g. an argument that is not UTF-8.
    """
    try:
        return unicodedata.normalize("NFC", text).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{text!r} is not valid text at character {error.start}; type it in UTF-8"
        ) from error


class RowBytes:
    """A converter from rows of token ids to the bytes of their text.

    Args:
        token_bytes: the bytes of each id, None for special tokens (pythia_core.data.tokenizer).
        separator: one byte for a special token, an unknown id or the end of a row.
        ignore_case: whether to convert ASCII letters to lower case.
    """

    def __init__(
        self, token_bytes: Sequence[bytes | None], separator: bytes, ignore_case: bool = False
    ) -> None:
        pieces = [separator if piece is None else piece for piece in (*token_bytes, None)]
        pool = b"".join(pieces)
        self._pool = np.frombuffer(pool.lower() if ignore_case else pool, np.uint8)
        self._lengths = np.array([len(piece) for piece in pieces], np.int64)
        self._last = np.cumsum(self._lengths) - 1
        self._starts = self._last + 1 - self._lengths
        self._has_empty = not self._lengths.all()

    def __call__(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Convert rows of token ids, int[n, width], to bytes.

        Returns:
            The bytes of all rows, each row followed by a separator; and int64[n * (width + 1)], the
            end position of each token. The separator after a row counts as a token.
        """
        last = len(self._lengths) - 1
        ids = np.full((len(rows), rows.shape[1] + 1), last, np.int64)
        ids[:, :-1] = np.minimum(rows, last)
        flat = ids.reshape(-1)
        stops = np.cumsum(self._lengths[flat])
        tokens, ends = flat, stops
        if self._has_empty:
            filled = self._lengths[flat] > 0
            tokens, ends = flat[filled], stops[filled]
        steps = np.ones(ends[-1], np.int64)  # to the token's next byte, or to the next token
        steps[0] = self._starts[tokens[0]]
        steps[ends[:-1]] = self._starts[tokens[1:]] - self._last[tokens[:-1]]
        return self._pool[np.cumsum(steps)], stops


# --- searching -------------------------------------------------------------------------------

CHUNK = 1 << 20
"""Number of tokens to search at a time."""
_BREAK = b"\xff"
"""The byte that stands for a special token or the end of a row. It never occurs in UTF-8."""


@dataclass(frozen=True)
class Hit:
    """An occurrence of a text in a training row, read in the update from `step` to `step + 1`."""

    step: int
    row: int
    """Index of the row in training order."""
    column: int
    """Index of the first token of the occurrence."""
    n_tokens: int
    """Number of tokens that the occurrence overlaps."""


class Matcher(Protocol):
    """Maps rows of token ids, int[n, width], to matches (row, first column, n tokens)."""

    def __call__(self, rows: NDArray[np.integer]) -> list[tuple[int, int, int]]: ...


class TokenMatcher:
    """A matcher of sequences of token ids. At each position, only the longest match counts.

    Raises:
        ConfigError: there is no sequence, or a sequence is empty.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.sequences = list(dict.fromkeys(tuple(map(int, s)) for s in sequences))
        if not self.sequences or not all(self.sequences):
            raise ConfigError("the text to find has no tokens; give at least one character")

    @classmethod
    def of(cls, text: str, tokenizer: Any) -> TokenMatcher:
        """Create a matcher for two encodings of `text`: with and without a preceding space."""
        text = as_in_data(text).decode()
        encoded = [tokenizer.encode(t, add_special_tokens=False).ids for t in (text, " " + text)]
        return cls(encoded if text else [])

    def __call__(self, rows: NDArray[np.integer]) -> list[tuple[int, int, int]]:
        """Return the matches in `rows`."""
        sizes: dict[tuple[int, int], int] = {}
        for sequence in self.sequences:
            size = len(sequence)
            n_starts = rows.shape[1] - size + 1
            if n_starts < 1:
                continue
            row, column = np.nonzero(rows[:, :n_starts] == sequence[0])
            for offset in range(1, size):
                same = rows[row, column + offset] == sequence[offset]
                row, column = row[same], column[same]
            for position in zip(row.tolist(), column.tolist(), strict=True):
                sizes[position] = max(size, sizes.get(position, 0))
        return [(*position, size) for position, size in sorted(sizes.items())]


class SurfaceMatcher:
    """A matcher of the bytes of a text, no matter how the text is tokenized.

    Args:
        token_bytes: the bytes of each id, None for special tokens (pythia_core.data.tokenizer).
        ignore_case: whether to ignore the case of ASCII letters.

    Raises:
        ConfigError: the text is empty.
    """

    def __init__(
        self, text: str, token_bytes: Sequence[bytes | None], ignore_case: bool = False
    ) -> None:
        needle = as_in_data(text)
        if not needle:
            raise ConfigError("the text to find is empty; give at least one character")
        self.needle = needle.lower() if ignore_case else needle  # bytes.lower: ASCII only
        self._bytes = RowBytes(token_bytes, _BREAK, ignore_case)

    def __call__(self, rows: NDArray[np.integer]) -> list[tuple[int, int, int]]:
        """Return the matches in `rows`."""
        width = rows.shape[1]
        row_bytes, ends = self._bytes(rows)
        text = row_bytes.tobytes()
        offsets = []
        offset = text.find(self.needle)
        while offset >= 0:
            offsets.append(offset)
            offset = text.find(self.needle, offset + 1)
        starts = np.array(offsets, np.int64)
        first = np.searchsorted(ends, starts, side="right")
        stop = np.searchsorted(ends, starts + len(self.needle) - 1, side="right")
        row, column = np.divmod(first, width + 1)
        sizes = stop - first + 1
        return list(zip(row.tolist(), column.tolist(), sizes.tolist(), strict=True))


def find_text(
    read: Callable[[int, int], NDArray],
    matcher: Matcher,
    batch_size: int,
    first_step: int,
    last_step: int,
    progress: bool = False,
) -> Iterator[Hit]:
    """Yield the occurrences of a text in the training rows, in training order.

    Args:
        read: returns the rows [start, stop) in training order, e.g. `Rows.rows`.
        batch_size: rows per update.
        first_step: the first update to search.
        last_step: the update at which the search ends; this update is not searched.

    Raises:
        DataError: the steps or the batch size are invalid, or rows cannot be read.
    """
    if not 0 <= first_step < last_step or batch_size < 1:
        raise DataError(
            "the first step (--from-step) must be at least 0 and before the last step (--to-step), "
            f"and batch_size must be at least 1; got the first step {first_step}, the last step "
            f"{last_step}, and batch_size={batch_size}"
        )
    start, stop = first_step * batch_size, last_step * batch_size
    low, size = start, batch_size
    with bar(
        progress, total=stop - start, desc="searching", unit="row", unit_scale=True
    ) as progress_bar:
        while low < stop:
            rows = read(low, min(low + size, stop))
            for row, column, n_tokens in matcher(rows):
                yield Hit((low + row) // batch_size, low + row, column, n_tokens)
            progress_bar.update(len(rows))
            low += len(rows)
            size = max(1, CHUNK // rows.shape[1])


def quote(row: NDArray, hit: Hit, decode: Callable[[list[int]], str], around: int = 12) -> str:
    """Quote an occurrence in [[ ]] on one line, with `around` tokens of text on each side."""
    ids = row.tolist()
    begin, end = hit.column, hit.column + hit.n_tokens
    parts = (ids[max(0, begin - around) : begin], ids[begin:end], ids[end : end + around])
    before, inside, after = (decode(part) if part else "" for part in parts)
    return " ".join(f"{before}[[{inside}]]{after}".split())
