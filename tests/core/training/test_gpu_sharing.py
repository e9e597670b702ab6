"""Workers have a GPU each, or share one without needing more memory than it has."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pythia_core.errors import ConfigError
from pythia_core.suite import scale_named
from pythia_core.training.execution import EAGER
from pythia_core.training.memory import run_bytes
from pythia_core.util import workers
from pythia_core.util.machine import DEVICES
from pythia_core.util.workers import parallel_map, reserve, workers_per_device


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of GPUs, which a test fills; no job uses them."""
    names: list[str] = []
    monkeypatch.setattr(workers, "visible_devices", lambda: names)
    monkeypatch.setenv("PYTHIA_WORKERS", "2")
    workers._stop()
    yield names
    workers._stop()


def test_all_sizes_fit_and_large_ones_take_more_memory() -> None:
    needs = [
        run_bytes(scale_named("gpu").run(size, precision="bf16"), EAGER)
        for size in scale_named("gpu").sizes
    ]
    assert needs == sorted(needs)
    assert needs[-1] < 40e9, "the largest fits twice on 80 GB"
    assert needs[0] < 8e9


def test_the_number_of_processes_can_be_set(
    devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_WORKERS", "8")
    assert workers._pool_size() == 8
    devices += ["0", "1"]
    assert workers._pool_size() == 6
    monkeypatch.setenv(workers.GPU_VARIABLE, "1")
    assert workers._pool_size() == 2
    monkeypatch.setenv(workers.GPU_VARIABLE, "none")
    with pytest.raises(ConfigError, match="PYTHIA_GPU_JOBS must be a positive whole number"):
        workers_per_device()


def device_of(folder: str) -> str | None:
    """Wait until another job runs at the same time; return the GPU that this one sees."""
    (Path(folder) / str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(list(Path(folder).iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    return os.environ.get(DEVICES)


def test_each_worker_sees_a_gpu_of_its_own(
    devices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(workers.GPU_VARIABLE, "1")
    devices += ["3", "GPU-5a"]
    found = parallel_map(device_of, [str(tmp_path)] * 2, progress=False)
    assert sorted(map(str, found)) == ["3", "GPU-5a"]


def alone(job: tuple[str, int]) -> bool:
    """For a job of weight 2 or more: whether no other one ran at the same time."""
    folder, weight = Path(job[0]), job[1]
    with reserve(weight, capacity=3):
        if weight == 1:
            return True
        mark = folder / "busy"
        if mark.exists():
            return False
        mark.touch()
        time.sleep(0.1)
        mark.unlink()
        return True


def test_jobs_wait_until_their_memory_is_free(devices: list[str], tmp_path: Path) -> None:
    devices += ["0"]
    jobs = [(str(tmp_path), need) for need in (2, 2, 1, 2, 9, 1)]  # 9 exceeds the capacity
    assert parallel_map(alone, jobs, progress=False) == [True] * 6
    assert alone((str(tmp_path), 9)), "a process that is no worker does not wait"
