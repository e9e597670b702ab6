"""How fast a training step is on one CUDA device: one job, some contenders of a size in turns.

Official sizes, rows of 2,048 real tokens, the same batch for every contender of a size (the largest
that the hungriest fits, found by an estimate and by trying). Contenders that fit into memory
together take turns: three repeats of at least `LEAST_STEPS` updates each, waited for at the end of
a repeat; first updates are dropped. A row says what the kernels logged on the way, e.g. that one
does not work here and a slower operation stood in. A dry run does the same with tiny models on the
CPU; its numbers mean nothing.

Not here: what is measured in which order and processes (bench_train_plan), jobs (bench_jobs),
contenders (bench_contenders), predictions (cost_model).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pythia_book.bench import cost_model
from pythia_book.bench.ceilings import Board, products_tflops
from pythia_book.bench.contenders import FITTING, Contender, Step
from pythia_book.bench.jobs import MEMORY, SKIPPED, Job, Row, groups, rows_to_try, unmeasured
from pythia_core.config import RunConfig
from pythia_core.errors import PythiaError

REPEATS = 3
LEAST_STEPS = 7
"""Updates a repeat; with three repeats at least 20 are timed."""
WARM_UP = 3
COSTS = {"eager": 8.0, "graph": 10.0, "compile": 40.0}
"""Seconds that a contender of a mode may take; none is begun with less of the budget left."""


# --- how many rows ---------------------------------------------------------------------------


def fitting_rows(job: Job, device: torch.device) -> int:
    """Rows of which one update of the hungriest contender fits; in a dry run two."""
    tries = rows_to_try(job, _total_bytes(device))
    if job.rows or device.type != "cuda":
        return job.rows or 2
    for rows in tries[:-1]:
        error = _try_update(job, rows, device)
        _release(device)
        if not isinstance(error, torch.OutOfMemoryError):
            return rows if error is None else tries[1]
    return tries[-1]


def _try_update(job: Job, rows: int, device: torch.device) -> Exception | None:
    try:
        step = FITTING.make(job.config(rows), device)
        with FITTING.turn(device):
            step(job.batches(rows, 1)[0])
            _wait(device)
    except Exception as error:
        return error.with_traceback(None)  # it would hold on to the memory
    return None


def _total_bytes(device: torch.device) -> float:
    return torch.cuda.mem_get_info()[1] if device.type == "cuda" else 80e9


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# --- measuring -------------------------------------------------------------------------------


@dataclass
class _Made:
    """A contender that is ready, and what was seen of it."""

    contender: Contender
    step: Step
    seconds: list[float] = field(default_factory=list)
    """Of an update, one number a repeat."""
    steps: int = 0
    peak: int = 0
    board: list[Row] = field(default_factory=list)


def measure(job: Job) -> Iterator[Row]:
    """A row for every contender of a job, as soon as it is known."""
    device = job.device
    if time.time() > job.deadline:
        yield from unmeasured(job, job.contenders, SKIPPED)
        return
    stance = "force_eager" if job.dry_run else "default"  # compiling takes minutes on a CPU
    with torch.compiler.set_stance(stance), _logged() as said:
        rows = fitting_rows(job, device)
        common = job.common | {
            "rows": rows,
            "products_tflops": products_tflops(device, 0.0 if job.dry_run else 0.5),
        }
        waiting = groups(job, rows, _total_bytes(device))
        while waiting:
            group = waiting.pop(0)
            together = {**common, "alternates_with": [c.name for c in group], "said": said}
            crowded = []
            for row in _measure_group(job, rows, group, together, device):
                if row.get("error", "").startswith(MEMORY) and len(group) > 1:
                    crowded.append(row["contender"])
                else:
                    yield row
            waiting += [[c] for c in group if c.name in crowded]
            torch.compiler.reset()
            _release(device)


def _measure_group(
    job: Job, rows: int, group: Sequence[Contender], common: Row, device: torch.device
) -> Iterator[Row]:
    batches, board = job.batches(rows), Board(device)
    ready: list[_Made] = []
    for contender in group:
        if time.time() + COSTS[contender.mode] > job.deadline:
            yield common | contender.words | {"error": SKIPPED}
            continue
        why = ""
        try:
            ready.append(_make(contender, job.config(rows), batches, device))
        except Exception as error:  # out of memory, no such mode on this device: a result too
            why = _reason(error)
        if why:
            _release(device)
            yield common | contender.words | {"error": why}
    for _ in range(REPEATS):
        for made in list(ready):
            why = ""
            try:
                _repeat(made, batches, job, device, board)
            except Exception as error:
                why = _reason(error)
            if why:
                ready.remove(made)
                yield common | made.contender.words | {"error": why}
    for made in ready:
        yield common | made.contender.words | _result(made, job, rows, device)


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What this library warns of inside, a list that grows."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("pythia_core")
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)


def _make(
    contender: Contender, config: RunConfig, batches: list[np.ndarray], device: torch.device
) -> _Made:
    """A contender after its first updates, which build what they need once."""
    before = _allocated(device)
    made = _Made(contender, contender.make(config, device))
    _allocated(device)  # what was needed for a moment to make it does not count
    with contender.turn(device):
        for number in range(WARM_UP):
            made.step(batches[number % len(batches)])
        _wait(device)
    if device.type == "cuda":
        made.peak = torch.cuda.max_memory_allocated() - before
    return made


def _repeat(
    made: _Made, batches: list[np.ndarray], job: Job, device: torch.device, board: Board
) -> None:
    """Time some updates and add them to what was seen."""
    with made.contender.turn(device):
        begun = time.perf_counter()
        made.step(batches[0])
        _wait(device)
        once = time.perf_counter() - begun
        n = max(LEAST_STEPS, round(job.seconds / max(once, 1e-6)) if not job.dry_run else 0)
        watched = board.watch()
        begun = time.perf_counter()
        for number in range(n):
            made.step(batches[number % len(batches)])
        _wait(device)
        made.seconds.append((time.perf_counter() - begun) / n)
        made.steps += n
        made.board.append(watched())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _allocated(device: torch.device) -> int:
    """Bytes allocated now; the peak is counted from here on."""
    if device.type != "cuda":
        return 0
    _wait(device)
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())[:300]
    if isinstance(error, torch.OutOfMemoryError):
        return f"{MEMORY}: {words}"
    return words if isinstance(error, PythiaError) else f"{type(error).__name__}: {words}"


def _result(made: _Made, job: Job, rows: int, device: torch.device) -> Row:
    tokens = rows * job.seq_len * job.micro_batches
    median = statistics.median(made.seconds)
    rate = tokens / median
    model = job.model
    found: Row = {
        "tokens_per_update": tokens,
        "tokens_per_s": rate,
        "tokens_per_s_low": tokens / max(made.seconds),
        "tokens_per_s_high": tokens / min(made.seconds),
        "ms": 1e3 * median,
        "steps_timed": made.steps,
        "peak_bytes": made.peak if device.type == "cuda" else None,
        "board": made.board,
    }
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    peak = cost_model.peak_tflops(name)
    for name, causal in (("causal", True), ("full", False)):
        flops = cost_model.mfu(model, rate, 1.0, causal, job.seq_len)
        found[f"tflops_{name}"] = flops
        found[f"mfu_{name}"] = flops / peak if peak else None
    return found
