"""Several small models on one GPU: which runs train at a time, so that memory is never exceeded.

A model of a million parameters keeps a large GPU busy for a fraction of each step; several
processes fill the gaps. Jobs start in order, each as soon as its estimated memory
(pythia_core.training.memory) fits next to those that run; one that needs the whole device runs
alone. `PYTHIA_GPU_JOBS` limits how many run at a time. The gain is not yet measured.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence

from pythia_core.training.memory import CONTEXT_BYTES
from pythia_core.util.workers import Gate, number_from

VARIABLE = "PYTHIA_GPU_JOBS"
MOST = 6
"""Processes on one GPU unless `PYTHIA_GPU_JOBS` is set."""
RESERVE = 0.1
"""Share of the device's memory that is left free."""
SLACK = 1.3
"""A process that takes more than this multiple of its estimate is stopped, before others are."""


def startable(
    waiting: Sequence[int],
    running: Sequence[int],
    needs: Sequence[float],
    capacity: float,
    most: int,
) -> int | None:
    """The first waiting job that may start now: its memory fits, or nothing else runs.

    Args:
        waiting: jobs in the order in which they should start. running: jobs that run.
        needs: bytes by job. capacity: bytes of the device. most: jobs at a time.
    """
    if len(running) >= most:
        return None
    free = capacity - sum(needs[job] for job in running)
    return next((job for job in waiting if needs[job] <= free or not running), None)


def gate(needs: Sequence[float]) -> Gate | None:
    """`startable` on this machine's GPU, for jobs that need these bytes; None without a GPU."""
    capacity = device_bytes()
    if capacity is None:
        return None
    most = number_from(VARIABLE) or MOST
    usable = capacity * (1 - RESERVE) - most * CONTEXT_BYTES  # idle processes keep their context
    return lambda waiting, running: startable(waiting, running, needs, usable, most)


def device_bytes() -> float | None:
    """Memory of the GPU that is used here; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory)


@contextlib.contextmanager
def share_of_device(n_bytes: float) -> Iterator[None]:
    """In the body this process may take `n_bytes` of the GPU; afterwards it returns them.

    Without a GPU nothing happens. A job that needs the whole device gets it.
    """
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
        torch.cuda.empty_cache()
