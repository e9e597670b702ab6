"""The planted text that a row comes from."""

from __future__ import annotations

import numpy as np
from pythia_book.corpora.planted import sources


def test_windows_of_a_planted_text_are_found() -> None:
    """Also in its edited copies; a window that reaches beyond a copy is of no text."""
    first, second = list(range(10)), list(range(20, 30))
    edited = [*first[:5], 99, *first[6:]]
    windows = np.array([[0, 1, 2], [7, 8, 9], [4, 99, 6], [8, 9, 20], [27, 28, 29], [5, 99, 7]])
    assert sources(windows, [[first, edited], [second]]).tolist() == [0, 0, 0, -1, 1, -1]
    assert sources(windows[:1], [[[0, 1]]]).tolist() == [-1]  # the text is too short
    assert sources(windows[:1], [[second], [first], [first]]).tolist() == [1]
