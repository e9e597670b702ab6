"""Run many independent jobs on all cores, with one worker process per core.

A small model trains hardly faster with a second thread, but n models train almost n times as fast
on n cores as on one. Each worker has one thread, so results do not depend on the number of cores.
The first call that needs workers starts them. They end with the main process, even if it is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pythia_core.errors import ConfigError, PythiaError
from pythia_core.util import progress as bars
from pythia_core.util.stopping import uninterrupted_children

VARIABLE = "PYTHIA_WORKERS"
Job = TypeVar("Job")
Result = TypeVar("Result")
Gate = Callable[[Sequence[int], Sequence[int]], int | None]
"""Maps the indices of the waiting jobs and of the running jobs to the index of the job that may
start now, or None. See training.gpu_sharing."""

MAX_JOB_NOTES = 4
"""Maximum number of running jobs that the progress line describes; others are only counted."""


SECONDS_TO_STOP = 60


class _ProgressSlot(ctypes.Structure):
    """Shared memory in which a worker writes the progress of its job, without a lock.

    `job` is the index of the job (-1: none), `share` the fraction done, `note` e.g. "step 4/9".
    """

    _fields_: ClassVar = [
        ("job", ctypes.c_int),
        ("share", ctypes.c_double),
        ("note", ctypes.c_char * 80),
    ]


_pool: tuple[ProcessPoolExecutor, ctypes.Array[_ProgressSlot]] | None = None


def process_count_from(variable: str) -> int | None:
    """Return the number in an environment variable; None if it is not set.

    Raises:
        ConfigError: the variable is not a positive whole number.
    """
    value = os.environ.get(variable)
    if value is None:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(
            f"the environment variable {variable} must be a positive whole number, got {value!r}"
        )
    return int(value)


def n_workers() -> int:
    """Return the number of workers: PYTHIA_WORKERS, or else the cores available to this process.

    Raises:
        ConfigError: the variable is not a positive whole number.
    """
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    return process_count_from(VARIABLE) or cores


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Make torch use one thread inside the block, so that no machine splits sums over threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def parallel_map(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    progress: bool = True,
    desc: str = "",
    unit: str = "job",
    names: Sequence[str] = (),
    work: Sequence[float] = (),
    in_process: bool = False,
    gate: Gate | None = None,
) -> list[Result]:
    """Return `[function(job) for job in jobs]`, computed by worker processes with one thread each.

    With one worker, jobs run in this process. If a job raises an error, the other jobs are stopped
    (jobs that train save their state), and the error is raised here.

    Args:
        function: importable by name. The function, its jobs and its results are pickled.
        jobs: start in this order, unless `gate` picks another order.
        desc: a verb that begins the progress line, e.g. "training"; if empty, nothing is logged.
        unit: noun for a job in the progress line, e.g. "run".
        names: names of the jobs in the progress line.
        work: amount of work of each job, in any unit, to estimate the time left; default: equal.
        in_process: run the jobs in this process, e.g. because starting workers would take longer.
        gate: picks the waiting job that may start next; default: the first.

    Raises:
        PythiaError: a worker died, e.g. because memory ran out.
    """
    if not jobs:
        return []
    line = _ProgressLine(progress, desc, unit, names, work or [1.0] * len(jobs))
    if in_process or len(jobs) < 2 or n_workers() < 2:
        with one_thread(), line:
            results: list[Result] = []

            def report(share: float, note: str) -> None:
                line.show({len(results): (share, note)})

            with bars.reporting(report):
                for number, job in enumerate(jobs):
                    report(0.0, "")
                    results.append(function(job))
                    line.done(number)
            return results
    pool, slots = _workers()
    with line:
        futures: dict[int, Future] = {}
        waiting, running = list(range(len(jobs))), dict[Future, int]()
        try:
            while waiting or running:
                # submit no more jobs than workers: one being stopped would start a queued job
                while waiting and len(running) < len(slots):
                    chosen = gate(waiting, list(running.values())) if gate else waiting[0]
                    if chosen is None:
                        break
                    waiting.remove(chosen)
                    with uninterrupted_children():  # the first submit starts the workers
                        futures[chosen] = pool.submit(_work, function, chosen, jobs[chosen])
                    running[futures[chosen]] = chosen
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    line.done(running.pop(future))
                reports = {s.job: (s.share, s.note.decode(errors="replace")) for s in slots}
                line.show({n: reports[n] for n in running.values() if n in reports})
            return [futures[number].result() for number in range(len(jobs))]
        except BrokenProcessPool as error:
            _stop()
            raise PythiaError(
                "a worker process died, perhaps because memory ran out. Finished jobs are saved. "
                "Run the same command again to continue. If a worker dies again, use fewer "
                f"workers: set the environment variable {VARIABLE}, e.g. to 1"
            ) from error
        except BaseException:
            _stop()
            raise


class _ProgressLine:
    """A line with the running jobs, their progress and the time left; see `parallel_map`."""

    def __init__(
        self, progress: bool, desc: str, unit: str, names: Sequence[str], work: Sequence[float]
    ) -> None:
        self._desc, self._unit, self._names = desc, unit, names
        self._parts = [part / sum(work) for part in work]
        self._done: set[int] = set()
        self._bar = bars.bar(
            progress,
            desc=self._title(),
            total=1.0,
            bar_format="{desc}: {percentage:.0f} %, {remaining} left{postfix}",
            smoothing=0.05,
            mininterval=0,
            miniters=0,
        )

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_: Any) -> None:
        if len(self._done) == len(self._parts):
            self._bar.n, self._bar.bar_format = self._bar.total, bars.DONE
            self._bar.set_description_str(self._title(), refresh=False)
        self._bar.close()

    def _title(self) -> str:
        """Return e.g. "training 9 runs"; "" without `desc`."""
        total = len(self._parts)
        return f"{self._desc} {total} {self._unit}{'s' * (total > 1)}" if self._desc else ""

    def show(self, running: dict[int, tuple[float, str]]) -> None:
        """Update the line; `running` maps each running job's index to (fraction done, note)."""
        total = len(self._parts)
        first = min(len(self._done) + 1, total)  # also shown once after the last job
        last = min(len(self._done) + max(1, len(running)), total)
        numbers = f" {first}" if first == last else f"s {first}-{last}"
        names = dict(enumerate(self._names))
        notes = [f"{names.get(n, '')} {note}".strip() for n, (_, note) in running.items()]
        if len(notes) > MAX_JOB_NOTES:
            notes[MAX_JOB_NOTES:] = [f"and {len(notes) - MAX_JOB_NOTES} more"]
        done = sum(self._parts[number] for number in self._done)
        done += sum(self._parts[number] * share for number, (share, _) in running.items())
        self._bar.set_description_str(
            f"{self._desc} {self._unit}{numbers} of {total}", refresh=False
        )
        self._bar.set_postfix_str("; ".join(filter(None, notes)), refresh=False)
        self._bar.update(min(done, 1.0) - self._bar.n)

    def done(self, number: int) -> None:
        """Mark a job as done."""
        self._done.add(number)


def workers_peak_mb() -> float:
    """Return the sum of the peak memory (resident set size) of all live workers, in MB.

    Without /proc, the result is 0.
    """
    total = 0
    for pid in list((_pool[0]._processes or {}) if _pool else {}):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return total * 1024 / 1e6


# --- workers ---------------------------------------------------------------------------------


def _workers() -> tuple[ProcessPoolExecutor, ctypes.Array[_ProgressSlot]]:
    """Return the pool of workers and their progress slots; the first call makes both."""
    global _pool
    if _pool is None:
        context = multiprocessing.get_context("spawn")
        slots = context.RawArray(_ProgressSlot, n_workers())
        for slot in slots:
            slot.job = -1
        arguments = (slots, context.Value("i", 0), os.getpid())
        executor = ProcessPoolExecutor(n_workers(), context, _start_worker, arguments)
        _pool = executor, slots
        atexit.register(_stop)
    return _pool


_slot: _ProgressSlot | None = None


def _start_worker(slots: ctypes.Array[_ProgressSlot], next_slot: Any, parent: int) -> None:
    """Set up a new worker, with one thread and a progress slot, that ends with its parent."""
    import torch

    global _slot
    torch.set_num_threads(1)
    # by default the signal would kill a worker that holds a lock of the pool's queues, and the
    # other workers would wait for that lock forever
    signal.signal(signal.SIGTERM, _exit_worker)
    # an ending worker may get the signal once more, e.g. from a notebook's kernel that shuts down
    Finalize(None, signal.signal, (signal.SIGTERM, signal.SIG_IGN), exitpriority=100)
    with next_slot.get_lock():
        _slot = slots[next_slot.value]
        next_slot.value += 1
    # a worker that outlived a killed parent would keep the lock of the run it is training
    exit_with_parent(parent, lambda: os._exit(1))


def _exit_worker(*_: Any) -> None:
    """Handle SIGTERM in a worker: exit, releasing every lock on the way."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(1)


def _work(function: Callable[[Job], Result], number: int, job: Job) -> Result:
    """Run a job in this worker, and write the progress of the job to the worker's slot."""
    slot = _slot
    assert slot is not None

    def report(share: float, note: str) -> None:
        slot.share, slot.note = share, note.encode()[:79]

    report(0.0, "")
    slot.job = number
    try:
        with bars.reporting(report):
            return function(job)
    finally:
        slot.job = -1


def exit_with_parent(parent: int, end: Callable[[], object]) -> None:
    """Start a thread that calls `end` when the process with the id `parent` has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        end()

    threading.Thread(target=watch, daemon=True).start()


def _stop() -> None:
    """Stop all workers, and kill those that have not ended after SECONDS_TO_STOP.

    A worker that is training saves its state first.
    """
    global _pool
    if _pool is None:
        return
    (pool, _), _pool = _pool, None
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        with contextlib.suppress(OSError):
            process.terminate()
    until = time.monotonic() + SECONDS_TO_STOP
    for process in processes:
        process.join(timeout=max(0.0, until - time.monotonic()))
        process.kill()
