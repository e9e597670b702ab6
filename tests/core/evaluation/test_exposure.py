"""Exposure counts equal counting by hand, window by window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pythia_core.errors import ConfigError, DataError
from pythia_core.evaluation import memorization
from pythia_core.evaluation.memorization import distinct_windows, exposure_counts


def by_hand(rows: np.ndarray, window: int, read: int) -> list[int]:
    seen = [tuple(row[i : i + window]) for row in rows[:read] for i in range(len(row) - window + 1)]
    return [seen.count(tuple(row[:window])) for row in rows]


@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=9, max_size=9), min_size=1, max_size=12),
    window=st.integers(1, 9),
    share=st.floats(0, 1),
)
def test_counts_equal_counting_by_hand(rows: list, window: int, share: float) -> None:
    array = np.array(rows, np.uint16)
    read = round(share * len(rows))
    assert exposure_counts(array, window, read).tolist() == by_hand(array, window, read)


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=9))
def test_a_collision_of_hashes_does_not_lie(rows: list) -> None:
    """With a multiplier of 0 every window of the same last token has the same hash."""
    array = np.array(rows, np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorization, "MULTIPLIER", 0)
        assert exposure_counts(array, 4).tolist() == by_hand(array, 4, len(rows))


@given(st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=9))
def test_equal_beginnings_are_one_group(rows: list) -> None:
    array = np.array(rows, np.uint16)
    distinct, group = distinct_windows(array, 3)
    np.testing.assert_array_equal(distinct[group], array[:, :3])
    assert len({tuple(row) for row in distinct}) == len(distinct)


def test_what_does_not_fit_is_refused() -> None:
    rows = np.zeros((3, 8), np.uint16)
    for window in (0, 9):
        with pytest.raises((ConfigError, DataError)):
            exposure_counts(rows, window)
    with pytest.raises(DataError, match="read=4 is outside"):
        exposure_counts(rows, 2, 4)
