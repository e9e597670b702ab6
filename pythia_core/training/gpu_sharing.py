"""Several small models on one GPU: which runs train at a time, so that memory is never exceeded.

A model of a million parameters keeps a large GPU busy for a fraction of each step; the host and the
many short kernels take the rest. Several processes on one device fill these gaps. Runs start
longest first, and the next one starts when its memory fits beside what runs; one that needs the
whole device runs alone. Memory is estimated, high rather than low. Nothing here needs a GPU: the
plan is a pure function. How much several processes gain is not yet measured; `PYTHIA_GPU_JOBS`
sets the most that run at a time. Not here: the processes (pythia_core.util.workers).
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pythia_core.config import ModelConfig, RunConfig
from pythia_core.errors import ConfigError

VARIABLE = "PYTHIA_GPU_JOBS"
MOST = 6
"""Processes on one GPU, if `PYTHIA_GPU_JOBS` says nothing else."""
CONTEXT_BYTES = 1.0e9
"""What a process takes on the device before its first tensor: context, libraries, workspaces."""
RESERVE = 0.1
"""Share of the device's memory that is left free."""
STATE_BYTES = 18
"""A parameter: fp32 master, gradient and moments, bf16 copy."""
SAVED = 48
"""Bytes of activations a token, layer and unit of width that autograd saves in bf16: 34 counted,
and some for what was not."""
SLACK = 1.3
"""A process that takes so many times what was estimated is stopped, before others are."""
MEASURING = 2.0e9
"""Bytes of activations while a checkpoint is measured."""
LOGIT_ROWS = 8192
"""Tokens of a chunk of logits, which are fp32 once and bf16 once, with their gradient."""


def run_bytes(config: RunConfig) -> float:
    """Device memory that training a run takes at most, in bytes; an estimate."""
    model, t = config.model, config.train
    rows = t.micro_batch or t.batch_size
    tokens = rows * config.data.seq_len
    width = 2 if t.precision == "fp32" else 1
    activations = SAVED * width * tokens * model.d_model * (model.n_layers + 1)
    logits = 12 * min(tokens, LOGIT_ROWS) * model.vocab_size
    return CONTEXT_BYTES + STATE_BYTES * model.n_params + activations + logits


def measuring_bytes(model: ModelConfig) -> float:
    """Device memory that measuring a checkpoint takes at most: fp32 weights twice, and batches."""
    return CONTEXT_BYTES + 8 * model.n_params + 12 * LOGIT_ROWS * model.vocab_size + MEASURING


@dataclass(frozen=True)
class Placed:
    """One job in a plan: when it starts and ends (in units of the given durations)."""

    job: int
    start: float
    end: float


def most_jobs() -> int:
    """How many processes may train on one GPU: `PYTHIA_GPU_JOBS`, else MOST.

    Raises:
        ConfigError: the variable is not a positive whole number.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return MOST
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError(f"{VARIABLE} must be a whole number from 1 on, got {given!r}")
    return int(given)


def startable(
    waiting: Sequence[int],
    running: Sequence[int],
    needs: Sequence[float],
    capacity: float,
    most: int,
) -> int | None:
    """The first waiting job that may start now: its memory fits beside what runs, or nothing runs.

    Args:
        waiting: jobs in the order in which they should start. running: jobs that run.
        needs: bytes by job. capacity: bytes of the device. most: jobs at a time.
    """
    if len(running) >= most:
        return None
    free = capacity - sum(needs[job] for job in running)
    return next((job for job in waiting if needs[job] <= free or not running), None)


def gate(needs: Sequence[float]) -> Callable[[Sequence[int], Sequence[int]], int | None] | None:
    """`startable` for jobs of these needs on this machine's GPU; None without one."""
    capacity = device_bytes()
    if capacity is None:
        return None
    most = most_jobs()
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
    """In the body this process may take `n_bytes` of the GPU, and gives them back afterwards.

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


def plan(
    needs: Sequence[float], durations: Sequence[float], capacity: float, most: int
) -> list[Placed]:
    """When each job starts and ends if the longest starts first; by start, then by job.

    A job that fits passes one that must wait for memory. Durations are taken as if a job ran no
    slower beside others, so that ends are early; the order of starts is what matters.
    """
    waiting = sorted(range(len(needs)), key=lambda job: (-durations[job], job))
    now, running, placed = 0.0, {}, []
    while waiting or running:
        job = startable(waiting, list(running), needs, capacity, most)
        if job is not None:
            waiting.remove(job)
            running[job] = now + durations[job]
            placed.append(Placed(job, now, running[job]))
            continue
        now = min(running.values())
        running = {job: end for job, end in running.items() if end > now}
    return placed
