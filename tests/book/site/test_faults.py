"""The tables of kills and flipped bits have the counts of the file, and their sums."""

from __future__ import annotations

import json

import pytest
from flips import OUTCOMES

pytest.importorskip("sphinx", reason="the extra `book` is not installed")

from pythia_book.site import faults


def test_the_rows_and_their_sums() -> None:
    flips = {"weights": dict.fromkeys(OUTCOMES, 1), "logs": dict.fromkeys(OUTCOMES, 2)}
    assert list(faults.OUTCOMES) == list(OUTCOMES)
    assert faults.flipped(flips) == [
        ["Weights", "5", "1", "1", "1", "1", "1"],
        ["Logs", "10", "2", "2", "2", "2", "2"],
        ["All", "15", "3", "3", "3", "3", "3"],
    ]
    kills = {"training": {"kills": 9, "finished": 3, "equal": 2}}
    assert faults.killed(kills) == [["Training", "9", "3", "2"], ["All", "9", "3", "2"]]


def test_the_committed_counts_have_nothing_unequal_or_unnoticed() -> None:
    if not faults.FILE.is_file():
        return
    counts = json.loads(faults.FILE.read_text())
    assert sum(each["kills"] for each in counts["kills"].values()) >= 200
    assert all(each["equal"] == each["finished"] > 0 for each in counts["kills"].values())
    assert sum(sum(row.values()) for row in counts["flips"].values()) >= 1000
    assert not any(row["silent"] + row["unnamed"] for row in counts["flips"].values())
