"""How often a sequence of tokens stands in the rows a model has read.

A training row counts by its first tokens, those that extraction asks for (64 in the paper). Their
exposure is the number of places, a row and an offset, at which the same tokens stand in the rows
read up to a step. A window that crosses the end of a row is never read as a whole and not counted.
Windows are found by a rolling hash, made by doubling, and every hit is compared token by token, so
that a collision of hashes cannot lie. Near-duplicates (one token exchanged) are not counted.
"""

from __future__ import annotations

import numpy as np

from pythia_core.errors import ConfigError, DataError

MULTIPLIER = 0x9E3779B97F4A7C15
_CHUNK = 1 << 16


def exposure_counts(rows: np.ndarray, window: int, read: int | None = None) -> np.ndarray:
    """int64[n]: how often the first `window` tokens of each row stand in the first `read` rows.

    Args:
        rows: int[n, width], in the order of training.
        read: rows read so far; default: all. Rows after it may have a count of 0.

    Raises:
        ConfigError, DataError: a window that does not fit the rows, or more rows than there are.
    """
    rows = _checked(rows, window)
    read = len(rows) if read is None else read
    if not 0 <= read <= len(rows):
        raise DataError(f"read={read} is outside 0..{len(rows)}, the number of rows")
    distinct, group = distinct_windows(rows, window)
    wanted = window_hashes(distinct, window)[:, 0]
    by_hash = np.argsort(wanted, kind="stable")
    ordered = wanted[by_hash]
    counts = np.zeros(len(distinct), np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(rows, window, axis=1)
    for start in range(0, read, _CHUNK // 8):
        block = windows[start : min(read, start + _CHUNK // 8)]
        hashes = window_hashes(rows[start : start + len(block)], window)
        first = np.searchsorted(ordered, hashes.ravel())
        first[first == len(ordered)] = 0
        (hits,) = np.nonzero(ordered[first] == hashes.ravel())
        row, offset = np.divmod(hits, hashes.shape[1])
        slot = first[hits]
        while len(hits):  # a second turn only where different windows share a hash
            for low in range(0, len(hits), _CHUNK):
                part = slice(low, low + _CHUNK)
                found = by_hash[slot[part]]
                same = (block[row[part], offset[part]] == distinct[found]).all(1)
                counts += np.bincount(found[same], minlength=len(counts))
            more = (slot + 1 < len(ordered)) & (
                ordered[np.minimum(slot + 1, len(ordered) - 1)] == ordered[slot]
            )
            hits, row, offset, slot = hits[more], row[more], offset[more], slot[more] + 1
    return counts[group]


def distinct_windows(rows: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The different beginnings of rows, int[d, window], and for each row the index of its own."""
    begin = np.ascontiguousarray(_checked(rows, window)[:, :window])
    if not len(begin):
        return begin, np.zeros(0, np.int64)
    whole = begin.view(np.dtype((np.void, begin.dtype.itemsize * window))).ravel()
    _, first, group = np.unique(whole, return_index=True, return_inverse=True)
    return begin[first], group.ravel()


def window_hashes(rows: np.ndarray, window: int) -> np.ndarray:
    """uint64[n, width - window + 1]: a polynomial hash of every window, modulo 2**64.

    A window of a + b tokens is hashed from those of a and of b, hence in log2(window) passes.
    """
    tokens = _checked(rows, window).astype(np.uint64) + np.uint64(1)
    hashes, length = tokens, 1
    for bit in bin(window)[3:]:
        power = np.uint64(pow(MULTIPLIER, length, 2**64))
        hashes = hashes[:, :-length] * power + hashes[:, length:]
        length *= 2
        if bit == "1":
            hashes = hashes[:, :-1] * np.uint64(MULTIPLIER) + tokens[:, length:]
            length += 1
    return hashes


def _checked(rows: np.ndarray, window: int) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 2:
        raise DataError(f"rows of shape {rows.shape}: give (rows, tokens)")
    if not 1 <= window <= rows.shape[1]:
        raise ConfigError(
            f"a window of {window} tokens does not fit rows of {rows.shape[1]}; use 1 to "
            f"{rows.shape[1]}, or longer rows"
        )
    return rows
