"""Run many independent jobs on all cores or GPUs of a machine, in worker processes.

A small model hardly trains faster with a second thread, but n models train almost n times as fast
on n cores as on one. Each worker has one thread, so results do not depend on the number of cores.
On a machine with GPUs, each worker sees one of them, and up to MAX_GPU_JOBS workers share a GPU: a
small model leaves a large GPU idle while Python prepares the next update or writes a checkpoint.
The first call that needs workers starts them. They end with the main process, even if it is killed.

A job raises TakenElsewhere if another process that shares the results folder is doing it, on this
machine or another one (pythia_core.util.leases). The job is started again later. It then finds the
result, or does what the other process left undone.
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
from multiprocessing.context import SpawnContext
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pythia_core.errors import ConfigError, PythiaError, TakenElsewhere
from pythia_core.util import progress as bars
from pythia_core.util.machine import DEVICES, visible_devices
from pythia_core.util.stopping import uninterrupted_children

VARIABLE = "PYTHIA_WORKERS"
Job = TypeVar("Job")
Result = TypeVar("Result")
GPU_VARIABLE = "PYTHIA_GPU_JOBS"
MAX_GPU_JOBS = 3
"""Maximum number of workers on one GPU unless `PYTHIA_GPU_JOBS` is set."""
ELSEWHERE_SECONDS = 1.0
"""Time between two checks of the jobs that other processes are doing; longer if there are many."""

MAX_JOB_NOTES = 4
"""Maximum number of running jobs that the progress line describes; others are only counted."""
SECONDS_TO_STOP = 60
"""Time for workers to save their work before they are killed."""


class _ProgressSlot(ctypes.Structure):
    """Shared memory in which a worker writes the progress of its job, without a lock.

    `job` is the index of the job (-1: none), `share` the fraction done, `note` e.g. "step 4/9".
    """

    _fields_: ClassVar = [
        ("job", ctypes.c_int),
        ("share", ctypes.c_double),
        ("note", ctypes.c_char * 80),
    ]


class _Reserved:
    """The bytes of each GPU that workers have reserved, in shared memory."""

    def __init__(self, context: SpawnContext, devices: list[str]) -> None:
        self.devices = devices
        self.changed = context.Condition()
        self.n_bytes = context.RawArray(ctypes.c_double, len(devices))


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


def workers_per_device() -> int:
    """Return the number of workers that may share a GPU.

    Raises:
        ConfigError: PYTHIA_GPU_JOBS is not a positive whole number.
    """
    return process_count_from(GPU_VARIABLE) or MAX_GPU_JOBS


def _pool_size() -> int:
    """Return the number of workers: one per core, or fewer if fewer may share the GPUs.

    Raises:
        ConfigError: an environment variable is not a positive whole number.
    """
    devices = len(visible_devices())
    return min(n_workers(), devices * workers_per_device()) if devices else n_workers()


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
    may_retry: Callable[[Job], bool] | None = None,
) -> list[Result]:
    """Return `[function(job) for job in jobs]`, computed by worker processes with one thread each.

    With one worker, jobs run in this process. If a job raises an error, the other jobs are stopped
    (jobs that train save their state), and the error is raised here.

    Args:
        function: importable by name. The function, its jobs and its results are pickled.
        jobs: start in this order.
        desc: a verb that begins the progress line, e.g. "training"; if empty, nothing is logged.
        unit: noun for a job in the progress line, e.g. "run".
        names: names of the jobs in the progress line.
        work: amount of work of each job, in any unit, to estimate the time left; default: equal.
        in_process: run the jobs in this process, e.g. because starting workers would take longer.
        may_retry: asked about once per second whether a job that raised TakenElsewhere can be
            started again, because its result is there or its lease is free; default: such an error
            is raised, as others are.

    Raises:
        PythiaError: a worker died, e.g. because memory ran out.
    """
    if not jobs:
        return []
    line = _ProgressLine(progress, desc, unit, names, work or [1.0] * len(jobs))
    queue = _Queue(jobs, may_retry)
    results: dict[int, Result] = {}
    if in_process or len(jobs) < 2 or _pool_size() < 2:
        number = -1

        def report(share: float, note: str) -> None:
            line.show({number: (share, note)}, len(queue.elsewhere))

        with one_thread(), line, bars.reporting(report):
            while queue.waiting or queue.elsewhere:
                if not queue.refill():
                    line.show({}, len(queue.elsewhere))
                    time.sleep(0.2)
                    continue
                number = queue.waiting.pop(0)
                report(0.0, "")
                try:
                    results[number] = function(jobs[number])
                    line.done(number)
                except TakenElsewhere as error:
                    queue.put_back(number, error)
        return [results[number] for number in range(len(jobs))]
    pool, slots = _workers()
    with line:
        running = dict[Future, int]()
        try:
            while queue.waiting or queue.elsewhere or running:
                queue.refill()
                # submit no more jobs than workers: one being stopped would start a queued job
                while queue.waiting and len(running) < len(slots):
                    number = queue.waiting.pop(0)
                    with uninterrupted_children():  # the first submit starts the workers
                        future = pool.submit(_work, function, number, jobs[number])
                    running[future] = number
                if running:
                    done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                else:
                    done = set()
                    time.sleep(0.2)
                for future in done:
                    number = running.pop(future)
                    try:
                        results[number] = future.result()
                        line.done(number)
                    except TakenElsewhere as error:
                        queue.put_back(number, error)
                reports = {s.job: (s.share, s.note.decode(errors="replace")) for s in slots}
                line.show(
                    {n: reports[n] for n in running.values() if n in reports}, len(queue.elsewhere)
                )
            return [results[number] for number in range(len(jobs))]
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


class _Queue:
    """The jobs, by index, waiting for a worker, and those that other processes are doing."""

    def __init__(self, jobs: Sequence[Any], may_retry: Callable[[Any], bool] | None) -> None:
        self.waiting = list(range(len(jobs)))
        self.elsewhere: list[int] = []
        self._jobs, self._may_retry = jobs, may_retry
        self._next_look = 0.0

    def put_back(self, number: int, error: TakenElsewhere) -> None:
        """Record that another process is doing a job; without `may_retry`, raise its error."""
        if self._may_retry is None:
            raise error
        self.elsewhere.append(number)

    def refill(self) -> bool:
        """Put jobs that can be started again back in line; return whether any job is waiting."""
        if self.elsewhere and time.monotonic() > self._next_look:
            assert self._may_retry is not None
            ready = [number for number in self.elsewhere if self._may_retry(self._jobs[number])]
            self.elsewhere = [number for number in self.elsewhere if number not in ready]
            self.waiting += ready
            self._next_look = time.monotonic() + ELSEWHERE_SECONDS + 0.05 * len(self.elsewhere)
        return bool(self.waiting)


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

    def show(self, running: dict[int, tuple[float, str]], elsewhere: int = 0) -> None:
        """Update the line.

        Args:
            running: maps each running job's index to (fraction done, note).
            elsewhere: number of jobs that other processes are doing.
        """
        total = len(self._parts)
        first = min(len(self._done) + 1, total)  # also shown once after the last job
        last = min(len(self._done) + max(1, len(running)), total)
        numbers = f" {first}" if first == last else f"s {first}-{last}"
        names = dict(enumerate(self._names))
        notes = [f"{names.get(n, '')} {note}".strip() for n, (_, note) in running.items()]
        if len(notes) > MAX_JOB_NOTES:
            notes[MAX_JOB_NOTES:] = [f"and {len(notes) - MAX_JOB_NOTES} more"]
        if elsewhere:
            notes.append(f"{elsewhere} in other processes")
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
        slots = context.RawArray(_ProgressSlot, _pool_size())
        for slot in slots:
            slot.job = -1
        reserved = _Reserved(context, visible_devices())
        arguments = (slots, context.Value("i", 0), os.getpid(), reserved)
        executor = ProcessPoolExecutor(len(slots), context, _start_worker, arguments)
        _pool = executor, slots
        atexit.register(_stop)
    return _pool


_slot: _ProgressSlot | None = None
_device: tuple[_Reserved, int] | None = None
"""The GPU of this worker, as an index into what workers have reserved; None without a GPU."""


def _start_worker(
    slots: ctypes.Array[_ProgressSlot], next_slot: Any, parent: int, reserved: _Reserved
) -> None:
    """Set up a new worker, with one thread, a progress slot and perhaps a GPU of its own.

    It ends with its parent.
    """
    global _slot, _device
    with next_slot.get_lock():
        number = next_slot.value
        next_slot.value += 1
    _slot = slots[number]
    if reserved.devices:
        _device = reserved, number % len(reserved.devices)
        os.environ[DEVICES] = reserved.devices[_device[1]]  # before torch looks for GPUs
    import torch

    torch.set_num_threads(1)
    # by default the signal would kill a worker that holds a lock of the pool's queues, and the
    # other workers would wait for that lock forever
    signal.signal(signal.SIGTERM, _exit_worker)
    # an ending worker may get the signal once more, e.g. from a notebook's kernel that shuts down
    Finalize(None, signal.signal, (signal.SIGTERM, signal.SIG_IGN), exitpriority=100)
    # a worker that outlived a killed parent would keep the lease of the run it is training
    exit_with_parent(parent, lambda: os._exit(1))


@contextlib.contextmanager
def reserve(n_bytes: float, capacity: float) -> Iterator[None]:
    """Reserve memory of this worker's GPU inside the block; wait until that much is free.

    A job that needs more than `capacity`, the bytes that all jobs on the GPU may use, waits until
    it is alone. A process that is not a worker has its GPU to itself, so it does not wait.
    """
    if _device is None:
        yield
        return
    reserved, index = _device
    used = reserved.n_bytes
    with reserved.changed:
        reserved.changed.wait_for(lambda: not used[index] or used[index] + n_bytes <= capacity)
        used[index] += n_bytes
    try:
        yield
    finally:
        with reserved.changed:
            used[index] = max(0.0, used[index] - n_bytes)
            reserved.changed.notify_all()


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
