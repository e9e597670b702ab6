"""The tables of kills and flipped bits have the counts of the file, and their sums."""

from __future__ import annotations

import json

import pytest
from flips import BAD, OUTCOMES

pytest.importorskip("sphinx", reason="the extra `book` is not installed")

from pythia_book.site import faults


def test_the_rows_and_their_sums() -> None:
    flips = {"weights": {"refused": 4, "silent": 1}, "logs (.jsonl)": {"refused": 10}}
    assert faults.rows(flips, ["refused", "unnamed", "silent"]) == [
        ["Weights", "4", "0", "1"],
        ["Logs (.jsonl)", "10", "0", "0"],
        ["All", "14", "0", "1"],
    ]


def test_the_committed_counts_have_nothing_unequal_or_unnoticed() -> None:
    assert list(faults.OUTCOMES) == list(OUTCOMES)
    counts = json.loads(faults.FILE.read_text())
    assert {outcome for row in counts["flips"].values() for outcome in row} <= {*OUTCOMES}
    assert sum(each["kills"] for each in counts["kills"].values()) >= 200
    assert all(each["equal"] == each["finished"] > 0 for each in counts["kills"].values())
    assert sum(sum(row.values()) for row in counts["flips"].values()) >= 1000
    assert not any(row.get(outcome) for outcome in BAD for row in counts["flips"].values())
