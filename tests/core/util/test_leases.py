"""Leases: one owner at a time, dead and silent owners are replaced, a lost lease is noticed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pythia_core.errors import TakenElsewhere
from pythia_core.util import leases
from pythia_core.util.leases import is_free, leased

SETTINGS = """
import random, sys, time
from pathlib import Path
from pythia_core.errors import TakenElsewhere
from pythia_core.util import leases
from pythia_core.util.files import atomic_file
leases.LEASE_SECONDS, leases.CHECK_SECONDS, leases.POLL_SECONDS = 1.5, 0.1, 0.1
folder = Path(sys.argv[1])
"""
OWNER = (
    SETTINGS
    + """
with leases.leased(folder / ".lease") as lease:
    print("leased", flush=True)
    while True:
        time.sleep(0.05)
        try:
            lease.check()
        except TakenElsewhere as error:
            print(f"lost: {error}", flush=True)
            break
"""
)


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE_SECONDS", 1.5)
    monkeypatch.setattr(leases, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.1)


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@contextmanager
def owner(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lease of a folder, and wait until it does."""
    process = start(OWNER, folder)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "leased\n"
        yield process
    finally:
        process.kill()
        process.wait()


def seconds_until_free(marker: Path) -> float:
    started = time.monotonic()
    while not is_free(marker):
        assert time.monotonic() < started + 20
        time.sleep(0.05)
    return time.monotonic() - started


def test_one_owner_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    marker = tmp_path / "new" / ".lease"
    with leased(marker) as lease:
        lease.check()
        with pytest.raises(TakenElsewhere, match="process"), leased(marker, wait=False):
            pass
        assert not is_free(marker)
    assert is_free(marker)
    assert list(marker.parent.iterdir()) == []


def test_a_live_owner_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with owner(tmp_path) as process:
        time.sleep(2.0)  # longer than the lease
        assert not is_free(tmp_path / ".lease")
        process.kill()
        process.wait()
        with leased(tmp_path / ".lease", job="training"):
            pass
    with owner(tmp_path) as process:
        os.kill(process.pid, signal.SIGSTOP)
        with leased(tmp_path / ".lease", job="training"):  # after the lease
            pass
        os.kill(process.pid, signal.SIGCONT)
    host = socket.gethostname()
    assert f"waiting for process {process.pid} on {host}: training" in capsys.readouterr().err


def test_a_killed_owner_is_replaced_at_once(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        process.kill()
        process.wait()
        assert seconds_until_free(tmp_path / ".lease") < 1


def test_a_stopped_owner_notices_that_it_lost_its_lease(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        os.kill(process.pid, signal.SIGSTOP)
        with leased(tmp_path / ".lease") as lease:
            os.kill(process.pid, signal.SIGCONT)
            assert process.stdout is not None
            lost = process.stdout.readline()
            assert lost.startswith(f"lost: {tmp_path} was taken over by process {os.getpid()} on")
            process.wait()
            lease.check()  # the former owner has not deleted the marker of the new one


@pytest.mark.parametrize("shift", [-3600, 3600])
def test_clocks_that_differ_by_an_hour_do_not_matter(tmp_path: Path, shift: int) -> None:
    """A file server's clock, and another machine's, show in the times of the marker alone."""
    marker = tmp_path / ".lease"
    with owner(tmp_path) as process:
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            now = time.time() + shift
            os.utime(marker, (now, now))
            assert not is_free(marker)
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGSTOP)
        assert 1 < seconds_until_free(marker) < 10


@pytest.mark.parametrize("name", ["elsewhere", socket.gethostname()])
def test_an_owner_on_another_machine_is_given_the_whole_lease(tmp_path: Path, name: str) -> None:
    """Even if that machine has the name of this one, where no such process is alive."""
    marker = tmp_path / ".lease"
    boot = leases._boot_id() ^ 1
    lines = ["filelock/2", f"pid={2**22 + 1}", f"host={name}", "mode=lease", "token=ab"]
    marker.write_text("\n".join([*lines, "duration=1.5", f"start={boot << 64 | 7}", ""]))
    assert 1.2 < seconds_until_free(marker) < 10


@pytest.mark.parametrize("content", ["", "filelock/2\npid=1\nho"])
def test_the_marker_of_a_process_killed_while_making_it_does_not_block_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    marker = tmp_path / ".lease"
    marker.write_text(content)
    monkeypatch.setattr("filelock._soft.MALFORMED_LOCK_AGE_THRESHOLD", 0.5)
    assert seconds_until_free(marker) < 10


WORKER = (
    SETTINGS
    + """
jobs = list(range(100))
random.shuffle(jobs)
while jobs:
    for job in list(jobs):
        result = folder / f"{job}.txt"
        try:
            with leases.leased(folder / f".{job}.lease", wait=False) as lease:
                if not result.exists():
                    time.sleep(random.uniform(0, 0.02))
                    lease.check()
                    with atomic_file(result) as temporary:
                        temporary.write_text(f"result of {job}\\n")
                        with open(folder / "done.log", "a") as log:
                            log.write(f"{job}\\n")
        except TakenElsewhere:
            continue
        jobs.remove(job)
    time.sleep(0.05)
"""
)


@pytest.mark.slow
def test_twenty_workers_race_for_a_hundred_jobs_and_some_are_killed(tmp_path: Path) -> None:
    dice = random.Random(7)
    workers = [start(WORKER, tmp_path) for _ in range(20)]
    killed = 0
    try:
        end = time.monotonic() + 400
        while any(worker.poll() is None for worker in workers):
            assert time.monotonic() < end, "the workers do not end"
            time.sleep(0.1)
            alive = [worker for worker in workers if worker.poll() is None]
            if len(list(tmp_path.glob("*.txt"))) > 5 and killed < 12 and len(alive) > 4:
                dice.choice(alive).kill()
                killed += 1
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert killed >= 5
    assert {p.name: p.read_text() for p in tmp_path.glob("*.txt")} == {
        f"{job}.txt": f"result of {job}\n" for job in range(100)
    }
    done = Counter((tmp_path / "done.log").read_text().split())
    # a worker that is killed while it writes has noted the job, but not recorded it
    assert sum(done.values()) - 100 <= killed
    assert len(done) == 100
    left = list(tmp_path.glob(".*.lease"))  # of workers killed with a job that all others had done
    assert len(left) <= killed
    for marker in left:
        with leases.leased(marker, wait=False):
            pass
    assert not list(tmp_path.glob(".*.lease"))
