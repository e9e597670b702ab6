"""How fast a training step is on one CUDA device: what is measured, in which order, and how.

What is worth most comes first, so that a budget of seconds cuts the least: every size against its
rivals, then what determinism and recomputation cost, then how speed grows with the micro-batch, the
length of rows and the micro-batches per update. Every job (contenders of one size at one shape) has
a process of its own: what it does to memory, or a crash, ends with it, and is a row.

Official sizes, rows of 2,048 real tokens, the same batch for every contender of a size (the largest
that the hungriest fits, found by an estimate and by trying). Contenders that fit into memory
together take turns: three repeats of at least `LEAST_STEPS` updates each, waited for at the end of
a repeat; first updates are dropped. A row says what the kernels logged on the way, e.g. that one
does not work here and a slower operation took its place. A dry run does the same with tiny models
on the CPU; its numbers mean nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib.metadata
import logging
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pythia_book.bench import cost_model
from pythia_book.bench.ceilings import Board, copy_tb_per_s, products_tflops
from pythia_book.bench.implementations import (
    CONTENDERS,
    FIRST,
    FITTING,
    LEARNING_RATE,
    PRICES,
    RIVAL,
    SECOND,
    Contender,
    Step,
)
from pythia_book.bench.rows import SKIPPED
from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import ConfigError, DataError, FetchError, PythiaError, one_of
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.util.files import atomic_file, results_dir
from pythia_core.util.machine import device_info
from pythia_core.util.stopping import uninterrupted_children

# --- jobs ------------------------------------------------------------------------------------

Row = dict[str, Any]
SEQ_LEN = cost_model.SEQ_LEN
TOKENS = {"narrow": 1 << 16, "wide": 1 << 15}
"""Tokens a micro-batch at most, up to a width of 256 and beyond: what fills an H100."""
MEMORY = "out of memory"


@dataclass(frozen=True)
class Job:
    """What one process measures: some contenders of one size at one shape.

    Attributes:
        purpose: "compare", "price", "rows" (micro-batches), "seq_len" or "accumulate".
        rows: of a micro-batch; 0: the largest that FITTING fits.
        micro_batches: an update.
    """

    size: str
    contenders: tuple[Contender, ...]
    purpose: str = "compare"
    rows: int = 0
    seq_len: int = SEQ_LEN
    micro_batches: int = 1
    dry_run: bool = False
    seconds: float = 1.0
    deadline: float = float("inf")
    """time.time() after which nothing is begun."""
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16), repr=False)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry_run else "cuda")

    @property
    def model(self) -> ModelConfig:
        rung = OFFICIAL_SIZES[self.size]
        if self.dry_run:
            return ModelConfig(1, 16, 2, 128, max_seq_len=self.seq_len)
        return rung.model(max_seq_len=self.seq_len)

    @property
    def common(self) -> Row:
        """What all rows of this job say."""
        return {
            "kind": "train",
            "size": self.size,
            "purpose": self.purpose,
            "rows": self.rows or None,
            "seq_len": self.seq_len,
            "micro_batches": self.micro_batches,
        }

    def config(self, rows: int) -> RunConfig:
        """A run whose updates are `micro_batches` of `rows` rows."""
        train = TrainConfig(
            steps=100_000,
            batch_size=rows * self.micro_batches,
            micro_batch=rows,
            lr_max=LEARNING_RATE,
            precision="bf16",
        )
        return RunConfig(self.model, DataConfig(seq_len=self.seq_len), train)

    def batches(self, rows: int, n: int = 4) -> list[np.ndarray]:
        """Some batches of rows of S+1 tokens, cut from the text one after the other."""
        shape = (rows * self.micro_batches, self.seq_len + 1)
        need = shape[0] * shape[1]
        found = np.resize(self.tokens, n * need).reshape(n, *shape)
        return list(found)


def rows_to_try(job: Job, total_bytes: float) -> list[int]:
    """Rows of a micro-batch, largest first: from twice what the estimate says, powers of two."""
    if job.rows:
        return [job.rows]
    model, most = job.model, TOKENS["narrow" if job.model.d_model <= 256 else "wide"]
    free = total_bytes - FITTING.held_bytes(model, 0)
    largest = rows = max(1, most // job.seq_len)
    while rows > 1 and FITTING.activation_bytes(model, rows * job.seq_len) > free:
        rows //= 2
    first = min(2 * rows, largest)
    return [2**power for power in range(first.bit_length() - 1, -1, -1)]


def groups(job: Job, rows: int, total_bytes: float) -> list[list[Contender]]:
    """Contenders that fit into memory together, by estimate, in order; alone if nothing fits."""
    model, tokens = job.model, rows * job.seq_len
    made: list[list[Contender]] = []
    held = peak = 0
    for contender in job.contenders:
        holds = contender.held_bytes(model, tokens)
        needs = contender.activation_bytes(model, tokens)
        if not made or held + holds + max(peak, needs) > total_bytes:
            made.append([])
            held = peak = 0
        made[-1].append(contender)
        held, peak = held + holds, max(peak, needs)
    return made


def unmeasured(job: Job, contenders: Sequence[Contender], why: str) -> Iterator[Row]:
    """A row for each of some contenders that says why it has no speed."""
    for contender in contenders:
        yield job.common | contender.words | {"error": why}


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


# --- the plan --------------------------------------------------------------------------------

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
                f"{error}\nWithout a network, copy {path.name} from a machine that has one; there, "
                "`python -m pythia_core bench train --device cuda --dry-run` leaves it in "
                "results/bench/"
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
        raise ConfigError(f"budget and seconds must be positive, got {budget} and {seconds}")
    if not dry_run and not torch.cuda.is_available():
        raise ConfigError(
            "torch finds no CUDA device; --device cpu measures on the CPU, --dry-run runs "
            "everything there at a tiny size"
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
    with uninterrupted_children():
        worker.start()
    theirs.close()
    reported: set[str] = set()
    limited = job.deadline < float("inf")
    try:
        while mine.poll(job.deadline + GRACE - time.time() if limited else None):
            row = mine.recv()
            reported.add(row["contender"])
            yield row
        why = "no answer in time; its process was killed"
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
