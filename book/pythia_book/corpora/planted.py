"""Finds the planted text, if any, that a row of the training data comes from.

A planted text is one that the corpus repeats on purpose. Almost all memorized rows come from a few
planted texts, and rows from the same text are mostly memorized together. So intervals are over
*units* instead of rows: all rows of a planted text are one unit. Other rows are one unit if they
have the same continuation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.corpora import miniature
from pythia_core.data.tokenizer import encode_documents

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData


def planted_ids(data: PreparedData, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the planted text, if any, that each window of tokens is taken from.

    Args:
        data: the prepared data, of one of the corpora in `miniature.PROPORTIONS`.
        windows: int[n, width], e.g. the continuations of rows.

    Returns:
        The index of each window's planted text, int[n], -1 for none; and how often each planted
        text occurs in the corpus, int[texts], most frequent first.
    """
    copies = miniature.copied_texts(data.config.domains, data.config.corpus)
    kind = np.min_scalar_type(-1 - len(copies))
    documents = (
        encode_documents(data.tokenizer, list(dict.fromkeys(miniature.copies_of(text, times))))
        for text, times in copies.items()
    )
    return sources(windows, documents).astype(kind), np.array([*copies.values()], np.int16)


def units(text: np.ndarray, planted: np.ndarray) -> np.ndarray:
    """Return the unit of each row, int[n]; rows of one unit share a number.

    Args:
        text: int[n], a number that rows with the same continuation share.
        planted: int[n], the index of the planted text that contains the continuation, or -1.
    """
    first = int(text.max(initial=-1)) + 1
    return np.where(planted < 0, text, first + planted.astype(int))


def sources(windows: np.ndarray, texts: Iterable[list[list[int]]]) -> np.ndarray:
    """Return the index of the first text that contains each window, int[n], -1 for none.

    `windows` is int[n, width]. A text is a list of its versions, i.e. itself and edited copies.
    """
    windows = np.ascontiguousarray(windows)
    keys = [window.tobytes() for window in windows]
    source = dict.fromkeys(keys, -1)
    for number, versions in enumerate(texts):
        for ids in versions:
            if len(ids) < windows.shape[1]:
                continue
            tokens = np.array(ids, windows.dtype)
            for window in np.lib.stride_tricks.sliding_window_view(tokens, windows.shape[1]):
                if source.get(key := window.tobytes()) == -1:
                    source[key] = number
    return np.array([source[key] for key in keys], int)
