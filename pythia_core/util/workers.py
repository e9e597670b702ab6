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
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pythia_core.errors import ConfigError, PythiaError
from pythia_core.util import progress as bars
from pythia_core.util.stopping import uninterrupted_children

VARIABLE = "PYTHIA_WORKERS"
Job = TypeVar("Job")
Found = TypeVar("Found")
Gate = Callable[[Sequence[int], Sequence[int]], int | None]
"""(waiting jobs, running jobs) -> which of the waiting may start now (training.gpu_sharing)."""

SHOWN = 4
"""Jobs that the progress line names; it counts all."""


class _Slot(ctypes.Structure):
    """What a worker tells of its job. Nobody locks it: what is read is only shown."""

    _fields_: ClassVar = [
        ("job", ctypes.c_int),
        ("share", ctypes.c_double),
        ("note", ctypes.c_char * 80),
    ]


_pool: tuple[ProcessPoolExecutor, Sequence[_Slot]] | None = None


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
    unit: str = "job",
    names: Sequence[str] = (),
    work: Sequence[float] = (),
    here: bool = False,
    gate: Gate | None = None,
) -> list[Found]:
    """`[function(job) for job in jobs]`, each job on one thread of one of the workers.

    One line says which jobs run and how far they are, by what their own bars tell.

    Args:
        function: importable by name; jobs and results are pickled. Jobs start in the order given.
        desc: what is done to them, e.g. "training"; empty: nothing is shown in a log.
        names: of the jobs, for the line; default: none.
        work: of each job, in any unit, for the time left; default: all the same.
        here: run the jobs in this process, e.g. because they are shorter than starting another.
        gate: says which job may start beside those that run; None: as many as there are workers.

    Raises:
        Whatever a job raises, the first one; the others are stopped (a training saves its state).
        PythiaError: a worker died, e.g. for want of memory.
    """
    if not jobs:
        return []
    line = _Line(progress, desc, unit, names, work or [1.0] * len(jobs))
    if here or len(jobs) < 2 or n_workers() < 2:
        with one_thread(), line:
            found = []
            for number, job in enumerate(jobs):
                line.show({number: (0.0, "")})
                with bars.telling(lambda *told, number=number: line.show({number: told})):
                    found.append(function(job))
                line.done(number)
            return found
    pool, slots = _workers()
    with line:
        futures: dict[int, Future] = {}
        waiting, running = list(range(len(jobs))), dict[Future, int]()
        try:
            while waiting or running:
                # none is queued: a worker that is told to stop would begin it
                while waiting and len(running) < len(slots):
                    number = gate(waiting, list(running.values())) if gate else waiting[0]
                    if number is None:
                        break
                    waiting.remove(number)
                    with uninterrupted_children():  # the first one starts the workers
                        futures[number] = pool.submit(_at_work, function, number, jobs[number])
                    running[futures[number]] = number
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    line.done(running.pop(future))
                told = {s.job: (s.share, s.note.decode(errors="replace")) for s in slots}
                line.show({number: told[number] for number in running.values() if number in told})
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


class _Line:
    """The progress line of many jobs: which of how many run, how far each is, the time left."""

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

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: Any) -> None:
        if len(self._done) == len(self._parts):
            self._bar.n, self._bar.bar_format = self._bar.total, bars.DONE
            self._bar.set_description_str(self._title(), refresh=False)
        self._bar.close()

    def _title(self) -> str:
        total = len(self._parts)
        return f"{self._desc} {total} {self._unit}{'s' * (total > 1)}" if self._desc else ""

    def show(self, running: dict[int, tuple[float, str]]) -> None:
        """Draw the line; `running`: job -> (share that is done, where it is)."""
        first, last = len(self._done) + 1, len(self._done) + max(1, len(running))
        which = f" {first}" if first == last else f"s {first}-{last}"
        names = dict(enumerate(self._names))
        told = [f"{names.get(n, '')} {note}".strip() for n, (_, note) in running.items()]
        if len(told) > SHOWN:
            told[SHOWN:] = [f"and {len(told) - SHOWN} more"]
        done = sum(self._parts[number] for number in self._done)
        done += sum(self._parts[number] * share for number, (share, _) in running.items())
        self._bar.set_description_str(
            f"{self._desc} {self._unit}{which} of {len(self._parts)}", refresh=False
        )
        self._bar.set_postfix_str("; ".join(filter(None, told)), refresh=False)
        self._bar.update(done - self._bar.n)

    def done(self, number: int) -> None:
        """A job is done."""
        self._done.add(number)


def workers_peak_mb() -> float:
    """Largest resident sets of the workers that are alive, added up, in MB; 0 where unknown."""
    total = 0
    for pid in list((_pool[0]._processes or {}) if _pool else {}):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return total * 1024 / 1e6


# --- workers ---------------------------------------------------------------------------------


def _workers() -> tuple[ProcessPoolExecutor, Sequence[_Slot]]:
    global _pool
    if _pool is None:
        context = multiprocessing.get_context("spawn")
        slots = context.RawArray(_Slot, n_workers())
        for slot in slots:
            slot.job = -1
        arguments = (slots, context.Value("i", 0), os.getpid())
        _pool = ProcessPoolExecutor(n_workers(), context, _start_worker, arguments), slots
        atexit.register(_stop)
    return _pool


_slot: _Slot | None = None


def _start_worker(slots: Sequence[_Slot], next_slot: Any, parent: int) -> None:
    import torch

    global _slot
    torch.set_num_threads(1)
    with next_slot.get_lock():
        _slot = slots[next_slot.value]
        next_slot.value += 1
    # it would go on if the parent was killed, and keep the lock of the run it trains
    end_with(parent, lambda: os._exit(1))


def _at_work(function: Callable[[Job], Found], number: int, job: Job) -> Found:
    """Do a job in a worker, and let its bars tell how far it is."""
    assert _slot is not None

    def tell(share: float, note: str) -> None:
        _slot.share, _slot.note = share, note.encode()[:79]

    tell(0.0, "")
    _slot.job = number
    try:
        with bars.telling(tell):
            return function(job)
    finally:
        _slot.job = -1


def end_with(parent: int, end: Callable[[], object]) -> None:
    """Watch from a thread that `parent` is still there, and call `end` once it is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        end()

    threading.Thread(target=watch, daemon=True).start()


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
