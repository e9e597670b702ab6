"""Train several small models on one GPU at the same time without exceeding its memory.

A small model leaves a large GPU idle while Python prepares the next update or writes a checkpoint.
Another process can use this time; kernels of different processes do not overlap. A waiting
job starts once its estimated memory (pythia_core.training.memory) fits next to the running jobs; if
several fit, the first in the queue starts. A job that needs the whole GPU runs alone. The
environment variable `PYTHIA_GPU_JOBS` limits the number of running jobs. The gain has not been
measured yet.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence

from pythia_core.training.memory import CONTEXT_BYTES
from pythia_core.util.workers import Gate, process_count_from

VARIABLE = "PYTHIA_GPU_JOBS"
MAX_JOBS = 3
"""Maximum number of processes on one GPU unless `PYTHIA_GPU_JOBS` is set."""
RESERVE = 0.1
"""Fraction of the device's memory that is left free."""
SLACK = 1.3
"""A process may use up to this multiple of its estimated memory; further allocations fail."""


def next_admissible(
    waiting: Sequence[int],
    running: Sequence[int],
    needs: Sequence[float],
    capacity: float,
    most: int,
) -> int | None:
    """Return the first waiting job that may start now, or None if no job may start.

    A job may start if fewer than `most` jobs run and the memory that the job needs is free. If no
    job runs, the first waiting job may start even if it needs more than `capacity`.

    Args:
        waiting: indices of the waiting jobs, in order.
        running: indices of the running jobs.
        needs: bytes that each job needs.
        capacity: bytes of the device that jobs can use.
    """
    if len(running) >= most:
        return None
    free = capacity - sum(needs[job] for job in running)
    return next((job for job in waiting if needs[job] <= free or not running), None)


def admission_gate(needs: Sequence[float]) -> Gate | None:
    """Return a gate (util.workers) for jobs, given the bytes each needs; None without a GPU."""
    capacity = device_bytes()
    if capacity is None:
        return None
    most = process_count_from(VARIABLE) or MAX_JOBS
    usable = capacity * (1 - RESERVE) - most * CONTEXT_BYTES  # idle processes have one too
    return lambda waiting, running: next_admissible(waiting, running, needs, usable, most)


def device_bytes() -> float | None:
    """Return the total memory of the GPU in use, in bytes; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory)


@contextlib.contextmanager
def limit_memory(n_bytes: float) -> Iterator[None]:
    """Limit this process to SLACK * `n_bytes` of GPU memory in the block; then free the memory."""
    total = device_bytes()
    if total is None:
        yield
        return
    import torch

    torch.cuda.set_per_process_memory_fraction(min(1.0, SLACK * n_bytes / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        gc.collect()
        with contextlib.suppress(RuntimeError):  # after a failed recording, whose error matters
            torch.cuda.empty_cache()
