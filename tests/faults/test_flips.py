"""No flipped bit in any kind of file that the project writes goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest
from flips import all_kinds, count

FLIPS = 3
"""Flips for each kind of file; run.py makes many more."""


@pytest.mark.slow
def test_every_flip_is_refused_by_name_repaired_or_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = all_kinds(tmp_path, monkeypatch)
    counted = {kind.name: count(kind, FLIPS, seed=1) for kind in kinds}
    assert len(counted) == len(kinds) and all(kind.files for kind in kinds)
    assert [problem for _, bad in counted.values() for problem in bad] == []
    assert {outcomes.total() for outcomes, _ in counted.values()} == {FLIPS}
