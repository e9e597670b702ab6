"""Many independent jobs on the cores there are: one process a core, one thread a process.

Small models gain little from a second thread (their operations are shorter than the threads' wait
for each other), several models at once gain nearly everything. As a worker has one thread, sums
are never split, so results do not depend on how many cores a machine has. Workers are started once
and kept for the life of the process; they end with it, however it ends.

`PYTHIA_WORKERS` sets their number (default: the cores of this process; 1: no other process).
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from pythia_core.errors import ConfigError, PythiaError
from pythia_core.util import progress as bars

VARIABLE = "PYTHIA_WORKERS"
Job = TypeVar("Job")
Found = TypeVar("Found")
Gate = Callable[[Sequence[int], Sequence[int]], int | None]
"""(waiting jobs, running jobs) -> which of the waiting may start now (training.gpu_sharing)."""

_pool: tuple[ProcessPoolExecutor, Any] | None = None


def n_workers() -> int:
    """How many processes work at a time: `PYTHIA_WORKERS`, else the cores of this process.

    Raises:
        ConfigError: the variable is not a positive whole number.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"{VARIABLE} must be a whole number from 1 on, got {given!r}")
    return int(given)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run the body on one thread: sums are then split nowhere, on any machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parallel_map(
    function: Callable[[Job], Found],
    jobs: Sequence[Job],
    *,
    progress: bool = True,
    desc: str = "",
    unit: str = "it",
    total: int | None = None,
    here: bool = False,
    gate: Gate | None = None,
) -> list[Found]:
    """`[function(job) for job in jobs]`, each job on one thread of one of the workers.

    Args:
        function: importable by name; jobs and results are pickled. Jobs start in the order given.
        total: length of the bar in units that the jobs' own bars report; None: count the jobs.
        here: run the jobs in this process, e.g. because they are shorter than starting another.
        gate: says which job may start beside those that run; None: as many as there are workers.

    Raises:
        Whatever a job raises, the first one; the others are stopped (a training saves its state).
        PythiaError: a worker died, e.g. for want of memory.
    """
    if here or len(jobs) < 2 or n_workers() < 2:
        own = bars.bar(progress and total is None, total=len(jobs), desc=desc, unit=unit)
        with one_thread(), own as bar:  # where `total` is given the jobs show bars themselves
            found = []
            for job in jobs:
                found.append(function(job))
                bar.update()
            return found
    pool, counter = _workers()
    counter.value = 0
    with bars.bar(progress, total=total or len(jobs), desc=desc, unit=unit) as bar:
        futures: dict[int, Future] = {}
        waiting, running = list(range(len(jobs))), dict[Future, int]()
        try:
            while waiting or running:
                while waiting:
                    number = gate(waiting, list(running.values())) if gate else waiting[0]
                    if number is None:
                        break
                    waiting.remove(number)
                    futures[number] = pool.submit(function, jobs[number])
                    running[futures[number]] = number
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    del running[future]
                left = len(waiting) + len(running)
                bar.n = counter.value if total is not None else len(jobs) - left
                bar.refresh()
            return [futures[number].result() for number in range(len(jobs))]
        except BrokenProcessPool as error:
            _stop()
            raise PythiaError(
                "a worker process died; was there enough memory? What was finished is kept: run "
                f"it again to go on, with fewer workers ({VARIABLE}=1) if it happens again"
            ) from error
        except BaseException:
            _stop()
            raise


def workers_peak_mb() -> float:
    """Largest resident sets of the workers that are alive, added up, in MB; 0 where unknown."""
    total = 0
    for pid in list((_pool[0]._processes or {}) if _pool else {}):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return total * 1024 / 1e6


# --- workers ---------------------------------------------------------------------------------


def _workers() -> tuple[ProcessPoolExecutor, Any]:
    global _pool
    if _pool is None:
        context = multiprocessing.get_context("spawn")
        counter = context.Value("q", 0)
        arguments = (counter, os.getpid())
        _pool = ProcessPoolExecutor(n_workers(), context, _start_worker, arguments), counter
        atexit.register(_stop)
    return _pool


def _start_worker(counter: Any, parent: int) -> None:
    import torch

    # an interrupt reaches the whole group; the parent ends its workers, idle ones silently
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    bars.relay_to(counter)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would go on, and keep the lock of the run it trains."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _stop() -> None:
    """End the workers; one that trains saves its state first."""
    global _pool
    if _pool is None:
        return
    (pool, _), _pool = _pool, None
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        with contextlib.suppress(OSError, TypeError):
            os.kill(process.pid, signal.SIGTERM)
    for process in processes:
        process.join(timeout=10)
