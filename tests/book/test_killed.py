"""A study that is killed anywhere and started again gives the tables of an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "pythia_core", "study", "repetition", "--scale", "smoke")
COMMAND += ("-p", "sizes=7k")
MOMENTS = (0.15, 0.3, 0.5, 0.8)
"""Of the time that an undisturbed run takes: each about here."""


def start(results: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHIA_RESULTS": str(results)}
    return subprocess.Popen(
        COMMAND,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def tables(results: Path) -> dict[str, bytes]:
    folder = results / "repetition" / "smoke"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))}


@pytest.mark.slow
@pytest.mark.wheels
def test_killed_at_random_moments_it_goes_on_to_the_same_tables(tmp_path: Path) -> None:
    started = time.monotonic()
    assert start(tmp_path / "whole").wait(timeout=300) == 0
    whole = time.monotonic() - started
    moments = random.Random(0)
    killed = 0
    for moment in MOMENTS:
        process = start(tmp_path / "killed")
        try:
            process.wait(timeout=whole * moment * moments.uniform(0.7, 1.1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its kernel and workers
            process.wait()
            killed += 1
    assert killed
    assert start(tmp_path / "killed").wait(timeout=300) == 0
    assert tables(tmp_path / "killed") == tables(tmp_path / "whole") != {}
