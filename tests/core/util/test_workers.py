"""Jobs in several processes: ordered results, one thread each, clean errors and exits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pythia_core.errors import ConfigError, DataError, TakenElsewhere
from pythia_core.util import workers as parallel
from pythia_core.util.workers import n_workers, one_thread, parallel_map


def square(x: int) -> int:
    if x == 13:
        raise DataError("thirteen")
    return x * x


def threads(_: int) -> tuple[int, int]:
    import torch

    return torch.get_num_threads(), os.getpid()


def test_results_are_the_same_with_and_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHIA_WORKERS", "2")
    jobs = list(range(9))
    assert parallel_map(square, jobs, progress=False) == [x * x for x in jobs]
    assert parallel_map(square, jobs, progress=False, in_process=True) == [x * x for x in jobs]
    assert parallel_map(square, [], progress=False) == []
    workers = parallel_map(threads, jobs, progress=False)
    assert {n for n, _ in workers} == {1}
    assert os.getpid() not in {pid for _, pid in workers}
    assert parallel_map(threads, [1], progress=False) == [(1, os.getpid())]


def test_an_error_in_a_worker_is_raised_in_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHIA_WORKERS", "2")
    with pytest.raises(DataError, match="thirteen"):
        parallel_map(square, [1, 13, 2, 3], progress=False)
    assert parallel_map(square, [2, 3], progress=False) == [4, 9]  # a new pool


def taken(job: tuple[str, int]) -> int:
    """Job 1 is done by another process until there is the file "free"."""
    folder, number = Path(job[0]), job[1]
    if number == 1 and not (folder / "free").exists():
        raise TakenElsewhere("job 1")
    (folder / str(number)).touch()
    return number


@pytest.mark.parametrize("in_process", [True, False])
def test_a_job_that_another_process_does_is_revisited_after_the_others(
    tmp_path: Path, in_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_WORKERS", "2")
    monkeypatch.setattr(parallel, "ELSEWHERE_SECONDS", 0.1)

    def may_retry(job: tuple[str, int]) -> bool:
        assert job[1] == 1
        if (tmp_path / "4").exists():
            (tmp_path / "free").touch()
        return (tmp_path / "free").exists()

    jobs = [(str(tmp_path), number) for number in range(5)]
    settings = {"progress": False, "in_process": in_process}
    assert parallel_map(taken, jobs, may_retry=may_retry, **settings) == [0, 1, 2, 3, 4]
    (tmp_path / "free").unlink()
    with pytest.raises(TakenElsewhere, match="job 1"):
        parallel_map(taken, jobs, **settings)


def test_the_number_of_threads_is_restored() -> None:
    import torch

    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("bad", ["0", "-1", "two", "1.5", ""])
def test_a_bad_number_of_workers_is_refused(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(parallel.VARIABLE, bad)
    with pytest.raises(ConfigError, match="PYTHIA_WORKERS"):
        n_workers()


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
        import os, time, pathlib
        from pythia_core.util.workers import parallel_map

        def job(folder):
            pathlib.Path(folder, str(os.getpid())).touch()
            time.sleep(60)

        if __name__ == "__main__":
            parallel_map(job, [os.environ["FOLDER"]] * 2, progress=False)
        """)
    )
    folder = tmp_path / "pids"
    folder.mkdir()
    environment = {**os.environ, "FOLDER": str(folder), "PYTHIA_WORKERS": "2"}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    try:
        until = time.monotonic() + 60
        while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        workers = [int(path.name) for path in folder.iterdir()]
        assert len(workers) == 2
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()

    def alive(pid: int) -> bool:
        try:
            return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return False

    until = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))


@pytest.mark.timeout(120)
def test_the_process_ends_after_an_error_while_another_job_stops(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
        import time
        from pythia_core.util.stopping import stop_requests
        from pythia_core.util.workers import parallel_map

        def job(number):
            if number == 0:
                time.sleep(0.2)
                raise ValueError
            with stop_requests() as requested:  # busy, so that processes wait for a core
                while not requested():
                    pass

        if __name__ == "__main__":
            for _ in range(5):
                try:
                    parallel_map(job, [0, 1], progress=False)
                except ValueError:
                    print("raised", flush=True)
        """)
    )
    environment = {**os.environ, "PYTHIA_WORKERS": "2"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "raised\n" * 5, done.stderr
