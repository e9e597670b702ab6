"""The benchmark of the training step on a GPU: what is measured, in which order and processes.

What is worth most comes first, so that a budget of seconds cuts the least: every size against its
rivals, then what determinism and recomputation cost, then how speed grows with the micro-batch, the
length of rows and the micro-batches of an update. Every job has a process of its own: what it does
to memory, or a crash, ends with it, and is a row. One command, one run, the same text.

Not here: how a job is measured (bench_train_gpu); rows as a file (throughput_rows).
"""

from __future__ import annotations

import datetime
import importlib.metadata
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from pythia_book.bench.ceilings import copy_tb_per_s, products_tflops
from pythia_book.bench.contenders import CONTENDERS, FIRST, PRICES, RIVAL, SECOND, Contender
from pythia_book.bench.jobs import MEMORY, SEQ_LEN, Job, Row, unmeasured
from pythia_book.bench.rows import COMMAND
from pythia_book.bench.train_gpu import measure
from pythia_core.config import DataConfig
from pythia_core.errors import ConfigError, DataError, FetchError, one_of
from pythia_core.util.files import atomic_file, results_dir
from pythia_core.util.machine import device_info

ORDER = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "14m", "31m")
"""Sizes by worth."""
SCALED = ("160m", "1.4b")
"""Sizes whose scaling is measured."""
TEXT_ROWS = 512
DATA = DataConfig("miniature", tokenizer="neox-20b", seq_len=SEQ_LEN)
"""The text that is read: the miniature corpus in the tokens of Pythia."""
GRACE = 60.0
"""Seconds past the budget after which a job that says nothing is ended."""


def comparisons(sizes: Sequence[str], common: Job) -> list[Job]:
    """Every size against its rivals, then against those that take long to compile, then what
    determinism and recomputation cost; `common` says what all jobs share."""
    sizes = [size for size in ORDER if size in sizes]
    rounds = ((FIRST, "compare"), (SECOND, "compare"), (PRICES, "price"))
    return [
        replace(common, size=size, contenders=contenders, purpose=purpose)
        for contenders, purpose in rounds
        for size in sizes
    ]


def scalings(size: str, ours: Contender, common: Job) -> list[Job]:
    """How the speed of `ours` grows with the rows of a micro-batch (until they do not fit), the
    micro-batches of an update, and the length of rows; of the last the rival's too."""
    at = replace(common, size=size, contenders=(ours,))
    jobs = [replace(at, purpose="rows", rows=2**power) for power in range(7)]
    jobs += [replace(at, purpose="accumulate", micro_batches=n) for n in (4, 16)]
    lengths = [common.seq_len // 4, common.seq_len // 2, 2 * common.seq_len, 4 * common.seq_len]
    both = replace(at, contenders=(ours, RIVAL), purpose="seq_len")
    return jobs + [replace(both, seq_len=length) for length in lengths]


# --- the text --------------------------------------------------------------------------------


def text_file() -> Path:
    """Where the tokens are kept: small enough to be carried to a machine without a network."""
    return results_dir() / "bench" / "tokens.npy"


def text_tokens(progress: bool = True) -> np.ndarray:
    """uint16[n]: real text to be cut into rows; made once, then read from `text_file`.

    Raises:
        FetchError, DataError: the corpus or tokenizer cannot be had here, or the file is damaged.
    """
    from pythia_core.data.prepare import prepare

    path = text_file()
    if not path.is_file():
        try:
            rows = prepare(DATA, progress).rows
        except FetchError as error:
            raise FetchError(
                f"{error}\nWithout a network, bring {path.name}: where there is one, `python -m "
                "pythia_core bench train --device cuda --dry-run` leaves it in results/bench/"
            ) from error
        tokens = np.asarray(rows.rows(0, min(rows.n_rows, TEXT_ROWS))).astype(np.uint16).ravel()
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.save(file, tokens)
    try:
        tokens = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}); delete it and run again") from error
    if tokens.dtype != np.uint16 or tokens.ndim != 1 or len(tokens) <= SEQ_LEN:
        raise DataError(f"{path} holds {tokens.dtype}{tokens.shape}, not uint16 tokens; delete it")
    return tokens


# --- running ---------------------------------------------------------------------------------


def bench_train_gpu(
    sizes: Sequence[str] = (),
    dry_run: bool = False,
    budget: float = 0.0,
    seconds: float = 1.0,
    isolate: bool = True,
    progress: bool = True,
) -> Iterator[Row]:
    """Rows as they are measured (pythia_book.bench.rows): machine, ceilings, contenders.

    Args:
        sizes: official sizes up to 2.8B (default: all).
        dry_run: tiny models on the CPU, to see that everything runs; ids modulo their vocabulary.
        budget: seconds after which nothing more is begun; 0: no limit.
        seconds: of timed updates a repeat, at least.
        isolate: a process for every job; costs seconds each.

    Raises:
        ConfigError: no CUDA device and no dry run, an unknown size, a negative budget.
        FetchError, DataError: no text to train on.
    """
    for size in sizes:
        if size not in ORDER:
            raise ConfigError(one_of(size, ORDER, "size of the benchmark on a GPU"))
    if budget < 0 or seconds <= 0:
        raise ConfigError(f"budget and seconds are positive, got {budget} and {seconds}")
    if not dry_run and not torch.cuda.is_available():
        raise ConfigError(
            "there is no CUDA device that torch sees; on a CPU use --device cpu, or --dry-run to "
            f"see that everything runs. What measures on a GPU: {COMMAND}"
        )
    deadline = time.time() + budget if budget else float("inf")
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    common = {"run": stamp, "dry_run": dry_run}
    device = torch.device("cpu" if dry_run else "cuda")
    tokens = text_tokens(progress) % (128 if dry_run else 50_304)
    text = f"{DATA.corpus} corpus, tokenizer {DATA.tokenizer}"
    machine = {**device_info(), **_versions(device), "kind": "machine", "text": text}
    yield {**common, **machine}
    for what, value in _ceilings(device, 0.0 if dry_run else 1.0):
        yield {**common, "kind": "ceiling", "what": what, "value": value}
    if device.type == "cuda":
        torch.cuda.empty_cache()
    shared = Job(
        "", (), seq_len=16 if dry_run else SEQ_LEN, dry_run=dry_run, seconds=seconds,
        deadline=deadline, tokens=tokens,
    )  # fmt: skip
    for row in _all_rows(sizes or ORDER, shared, _in_process if isolate else measure):
        yield {**common, **row}


def _all_rows(
    sizes: Sequence[str], shared: Job, run: Callable[[Job], Iterator[Row]]
) -> Iterator[Row]:
    rows: dict[str, int] = {}  # of a micro-batch, as the first job of a size found them to fit
    fastest: dict[str, Row] = {}
    for job in comparisons(sizes, shared):
        for row in run(replace(job, rows=rows.get(job.size, 0))):
            rows[job.size] = row["rows"] or 0
            rate = row.get("tokens_per_s", 0.0)
            if row["who"] == "ours" and rate > fastest.get(job.size, {}).get("tokens_per_s", 0.0):
                fastest[job.size] = row
            yield row
    for size in (size for size in SCALED if size in fastest):
        full = False
        for job in scalings(size, CONTENDERS[fastest[size]["contender"]], shared):
            if full and job.purpose == "rows":
                continue
            same_tokens = max(1, rows[size] * shared.seq_len // job.seq_len)
            for row in run(replace(job, rows=job.rows or same_tokens)):
                full = full or row.get("error", "").startswith(MEMORY)
                yield row


def _versions(device: torch.device) -> Row:
    names = ("transformers", "triton", "numpy")
    found: Row = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["cudnn"] = torch.backends.cudnn.version() if device.type == "cuda" else None
    found["memory_bytes"] = torch.cuda.mem_get_info()[1] if device.type == "cuda" else None
    return found


def _ceilings(device: torch.device, seconds: float) -> Iterator[tuple[str, float]]:
    """Names and values, measured one after the other."""
    yield "products, best, TFLOP/s", products_tflops(device, seconds)
    yield "products, sustained, TFLOP/s", products_tflops(device, 10 * seconds, best=False)
    yield "copy, TB/s", copy_tb_per_s(device)


def _in_process(job: Job) -> Iterator[Row]:
    """`measure` in a process of its own; contenders that it did not speak of give a row."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(job, theirs))
    worker.start()
    theirs.close()
    reported: set[str] = set()
    limited = job.deadline < float("inf")
    try:
        while mine.poll(job.deadline + GRACE - time.time() if limited else None):
            row = mine.recv()
            reported.add(row["contender"])
            yield row
        why = "no answer in time: its process was ended"
    except EOFError:  # it is done, or dead
        worker.join()
        why = f"its process ended with code {worker.exitcode}"
    finally:
        worker.kill()
        worker.join()
    yield from unmeasured(job, [c for c in job.contenders if c.name not in reported], why)


def _work(job: Job, connection: Connection) -> None:
    for row in measure(job):
        connection.send(row)
