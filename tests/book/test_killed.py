"""A study that is killed and started again gives the tables of another, undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STUDIES = {
    "memorization": "sizes=7k",
    "deduplication": "sizes=7k",
    "repetition": "sizes=7k",
    "scaling": "sizes=7k tasks=piqa limit=20",
    "seeds": "seeds=2 apart_seeds=3",
}
"""Studies with parameters that make them short."""


def start(study: str, results: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "pythia_core", "study", study, "--scale", "smoke"]
    command += [word for each in STUDIES[study].split() for word in ("-p", each)]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHIA_RESULTS": str(results)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def tables(study: str, results: Path) -> dict[str, bytes]:
    folder = results / study / "smoke"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


@pytest.mark.slow
@pytest.mark.wheels
@pytest.mark.parametrize("study", STUDIES)
def test_killed_at_a_random_moment_it_goes_on_to_the_same_tables(
    tmp_path: Path, study: str
) -> None:
    started = time.monotonic()
    assert start(study, tmp_path / "whole").wait(timeout=300) == 0
    whole = time.monotonic() - started
    process = start(study, tmp_path / "killed")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=whole * random.Random(study).uniform(0.2, 0.8))
    os.killpg(process.pid, signal.SIGKILL)  # with its kernel and workers
    process.wait()
    assert start(study, tmp_path / "killed").wait(timeout=300) == 0
    assert tables(study, tmp_path / "killed") == tables(study, tmp_path / "whole") != {}
