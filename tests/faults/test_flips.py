"""No flipped bit in any kind of file that the project writes goes unnoticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flips import OUTCOMES, Kind, Unnoticed, all_kinds, count, flip
from places import ROOT

from pythia_core.errors import DataError

FLIPS = 3
"""Flips for each kind of file; run.py makes many more."""


@pytest.mark.slow
def test_every_flip_is_refused_by_name_repaired_or_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = all_kinds(tmp_path, monkeypatch)
    assert all(kind.files for kind in kinds)
    shown = json.loads((ROOT / "book" / "faults.json").read_text())["flips"]
    assert {kind.name for kind in kinds} == shown.keys(), "run tests/faults/run.py again"
    assert [problem for kind in kinds for problem in count(kind, FLIPS, seed=1)[1]] == []


def test_a_flip_changes_one_bit(tmp_path: Path) -> None:
    (file := tmp_path / "weights").write_bytes(bytes(40))
    flip(file, np.random.default_rng(0))
    assert sum(byte.bit_count() for byte in file.read_bytes()) == 1


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_each_outcome_is_recognized(tmp_path: Path, outcome: str) -> None:
    files = [tmp_path / step / "weights" for step in ("step-1", "step-2")]
    for file in files:
        file.parent.mkdir()
        file.write_text("whole")

    def read() -> tuple[Any, bool]:
        found = [file.read_bytes() for file in files]
        damaged = [file for file, content in zip(files, found, strict=True) if content != b"whole"]
        for file in damaged:
            if outcome == "refused":
                raise DataError(f"{file} is damaged")
            if outcome == "unnamed":  # the name alone could be that of the other file
                raise DataError(f"{file.name} is damaged")
            if outcome == "traceback":
                raise ValueError(f"{file}")
            if outcome == "silent":
                raise Unnoticed
        return len(found), bool(damaged) and outcome == "repaired"

    counted, bad = count(Kind("weights", files, read), 5)
    assert counted == {outcome: 5}
    assert len(bad) == 5 * (outcome in ("unnamed", "traceback", "silent"))
    assert {file.read_text() for file in files} == {"whole"}


def test_another_value_without_a_word_is_silent(tmp_path: Path) -> None:
    (file := tmp_path / "weights").write_text("whole")
    kind = Kind("weights", [file], lambda: (file.read_bytes(), False))
    assert count(kind, 5)[0] == {"silent": 5}
