"""Let several worker processes share a GPU without exceeding its memory.

A job waits in its worker until its estimated memory (pythia_core.training.memory) fits next to the
jobs that run on the same GPU; a job that needs the whole GPU runs alone. Kernels of different
processes do not overlap. The gain has not been measured yet.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

from pythia_core.training.memory import CONTEXT_BYTES
from pythia_core.util.workers import reserve, workers_per_device

RESERVE = 0.1
"""Fraction of the device's memory that is left free."""
SLACK = 1.3
"""A process may use up to this multiple of its estimated memory; further allocations fail."""


def device_bytes() -> float | None:
    """Return the total memory of this process's GPU, in bytes; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory)


@contextlib.contextmanager
def limit_memory(n_bytes: float) -> Iterator[None]:
    """Wait for `n_bytes` of GPU memory; in the block, limit this process to SLACK times as much.

    At the end of the block, the memory is freed.
    """
    total = device_bytes()
    if total is None:
        yield
        return
    import torch

    usable = total * (1 - RESERVE) - workers_per_device() * CONTEXT_BYTES  # of idle processes, too
    with reserve(n_bytes, usable):
        torch.cuda.set_per_process_memory_fraction(min(1.0, SLACK * n_bytes / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
            gc.collect()
            with contextlib.suppress(RuntimeError):  # after a failed recording, whose error matters
                torch.cuda.empty_cache()
