"""The tables of kills and flipped bits have the counts of the file, and their sums."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flips import BAD, OUTCOMES
from places import ROOT

pytest.importorskip("sphinx", reason="the extra `book` is not installed")

from pythia_book.site import faults
from sphinx.errors import ExtensionError


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


def test_the_counts_name_a_commit_of_this_history() -> None:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, check=False, capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else "failed"

    if git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("the history is not here")
    counted = json.loads(faults.FILE.read_text())["commit"]
    assert git("merge-base", "--is-ancestor", counted, "HEAD") == "", (
        "run tests/faults/run.py again"
    )


def test_a_damaged_file_of_counts_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(faults.FILE.read_text())
    monkeypatch.setattr(faults, "FILE", tmp_path / "faults.json")
    shown: Any = SimpleNamespace(
        env=SimpleNamespace(note_dependency=str), _tables=faults.Faults._tables
    )
    texts = ["{", "{}", "[]", "", "[" * 100_000]
    texts += [json.dumps(whole | {key: None}) for key in whole if key not in ("date", "machine")]
    texts += [json.dumps(whole | {"kills": {"training": {"kills": "9"}}})]
    for text in texts:
        faults.FILE.write_text(text)
        with pytest.raises(ExtensionError, match=r"faults\.json is damaged"):
            faults.Faults.run(shown)
    faults.FILE.unlink()
    with pytest.raises(ExtensionError, match=r"faults\.json is damaged"):
        faults.Faults.run(shown)
    faults.FILE.write_text(json.dumps(whole))
    assert len(faults.Faults.run(shown)) == 3
