"""Runs that share a GPU never need more memory than it has, and the longest starts first."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pythia_core.errors import ConfigError
from pythia_core.suite import scale_named
from pythia_core.training import gpu_sharing
from pythia_core.training.execution import EAGER
from pythia_core.training.gpu_sharing import next_admissible
from pythia_core.training.memory import run_bytes
from pythia_core.util.workers import parallel_map

JOBS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=12)


@given(JOBS, st.integers(4, 12), st.integers(1, 5))
def test_jobs_exceed_neither_memory_nor_number(jobs, capacity, most) -> None:
    needs, durations = zip(*jobs, strict=True)
    waiting = sorted(range(len(jobs)), key=lambda job: (-durations[job], job))
    now, running, starts = 0, dict[int, int](), dict[int, int]()
    while waiting or running:
        job = next_admissible(waiting, list(running), needs, capacity, most)
        if job is None:
            now = min(running.values())
            running = {other: end for other, end in running.items() if end > now}
            continue
        if not starts:
            assert job == waiting[0], "the first waiting job starts first"
        waiting.remove(job)
        starts[job], running[job] = now, now + durations[job]
        assert len(running) <= most
        assert len(running) == 1 or sum(needs[j] for j in running) <= capacity
    assert sorted(starts) == list(range(len(jobs)))
    for one, other in itertools.permutations(starts, 2):
        if needs[one] == needs[other] and durations[one] > durations[other]:
            assert starts[one] <= starts[other], "of jobs with equal needs, the longer starts first"


def test_a_job_larger_than_the_device_runs_alone() -> None:
    assert next_admissible([0, 1], [], [9, 1], 5, 4) == 0
    assert next_admissible([1], [0], [9, 1], 5, 4) is None
    assert next_admissible([1, 2], [], [9, 1, 1], 5, 4) == 1


def test_all_sizes_fit_and_large_ones_take_more_memory() -> None:
    needs = [
        run_bytes(scale_named("gpu").run(size, precision="bf16"), EAGER)
        for size in scale_named("gpu").sizes
    ]
    assert needs == sorted(needs)
    assert needs[-1] < 40e9, "the largest fits twice on 80 GB"
    assert needs[0] < 8e9


def test_the_number_of_processes_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_sharing, "device_bytes", lambda: 80e9)
    monkeypatch.setenv(gpu_sharing.VARIABLE, "3")
    gate = gpu_sharing.admission_gate([1.0] * 4)
    assert [gate([3], list(range(n))) for n in (2, 3)] == [3, None]
    monkeypatch.setenv(gpu_sharing.VARIABLE, "none")
    with pytest.raises(ConfigError, match="PYTHIA_GPU_JOBS must be a positive whole number"):
        gpu_sharing.admission_gate([1.0])


def alone(job: tuple[str, int]) -> bool:
    """For a job of weight 2: whether no other one ran at the same time."""
    folder, weight = Path(job[0]), job[1]
    if weight == 1:
        return True
    mark = folder / "busy"
    if mark.exists():
        return False
    mark.touch()
    time.sleep(0.1)
    mark.unlink()
    return True


def test_jobs_wait_for_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHIA_WORKERS", "2")
    needs = [2, 2, 1, 2, 1]
    jobs = [(str(tmp_path), need) for need in needs]
    found = parallel_map(
        alone, jobs, progress=False, gate=lambda w, r: next_admissible(w, r, needs, 3, 2)
    )
    assert found == [True] * 5
    assert gpu_sharing.admission_gate(needs) is None, "there is no GPU here"
