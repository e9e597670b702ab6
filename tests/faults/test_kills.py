"""Jobs that are killed at random moments give the result of an undisturbed job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_jobs_end_with_the_same_result(tmp_path: Path) -> None:
    """The command that writes book/faults.json, with few kills."""
    out = tmp_path / "faults.json"
    command = [sys.executable, str(Path(__file__).with_name("run.py"))]
    command += ["--kills", "12", "--flips", "0", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    counted = json.loads(out.read_text())["kills"]
    assert list(counted) == ["preparation", "recording", "training"]
    assert all(each["equal"] == each["finished"] > 0 for each in counted.values())
