"""Rows of token ids as the bytes that they stand for: what counting and searching in text share.

A byte-level token may end in the middle of a word or of a character, so that words are looked for
in bytes, not in tokens. The bytes of many rows are gathered at once, by a running sum of steps
through one pool that holds every token's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class RowBytes:
    """Turns rows into bytes.

    Args:
        token_bytes: the bytes of each id, None for special tokens (pythia_core.data.tokenizer).
        gap: one byte for a special token, for an id that is not there and for the end of a row.
        ignore_case: lower-case ASCII letters.
    """

    def __init__(
        self, token_bytes: Sequence[bytes | None], gap: bytes, ignore_case: bool = False
    ) -> None:
        pieces = [gap if piece is None else piece for piece in (*token_bytes, None)]
        pool = b"".join(pieces)
        self._pool = np.frombuffer(pool.lower() if ignore_case else pool, np.uint8)
        self._lengths = np.array([len(piece) for piece in pieces], np.int64)
        self._last = np.cumsum(self._lengths) - 1
        self._starts = self._last + 1 - self._lengths
        self._has_empty = not self._lengths.all()

    def __call__(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Of rows int[n, width]: their bytes, and where in them each token ends, int64[n * (width +
        1)], the gap after each row being one more token."""
        last = len(self._lengths) - 1
        ids = np.full((len(rows), rows.shape[1] + 1), last, np.int64)
        ids[:, :-1] = np.minimum(rows, last)
        flat = ids.reshape(-1)
        stops = np.cumsum(self._lengths[flat])
        some, ends = flat, stops
        if self._has_empty:
            there = self._lengths[flat] > 0
            some, ends = flat[there], stops[there]
        steps = np.ones(ends[-1], np.int64)  # to the next byte of the pool, or to the next token's
        steps[0] = self._starts[some[0]]
        steps[ends[:-1]] = self._starts[some[1:]] - self._last[some[:-1]]
        return self._pool[np.cumsum(steps)], stops
