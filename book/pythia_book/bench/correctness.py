"""Checks that kernels and training are correct on a GPU.

Kernels are compared with results in fp64. A kernel that would fall back to a slower operation
counts as failed. Training is compared, in every mode, with the same model in plain PyTorch on the
CPU in fp32. Except under torch.compile, training must give the same bits as a run in eager mode,
and as a run that was saved and resumed halfway. A dry run makes the same checks on tiny CPU
tensors, without GPU kernels.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pythia_book.bench.kernels import (
    Case,
    Implementation,
    cases,
    check_can_run,
    check_gpu_usable,
    exact_results,
    machine_row,
    reason,
    relative_error,
    results,
    shape_of,
)
from pythia_book.bench.rows import SKIPPED, Row
from pythia_core import kernels
from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import PythiaError
from pythia_core.kernels import PLAIN, Ops, dispatch
from pythia_core.kernels.linear import accumulator, add_in_product_
from pythia_core.model import GPTNeoX
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.execution import EAGER, Execution
from pythia_core.training.trainer import DTYPES, Trainer
from pythia_core.util.machine import deterministic

VOCAB = 256
"""Vocabulary size of the tiny model that is trained."""
UPDATES = {32: 20, 64: 6, 512: 20, 2048: 6}
"""Maps a row length of the training check to the number of updates. On a GPU, rows are several
tiles of an attention kernel long."""
SEQ_LENS = {"cpu": (32, 64), "cuda": (512, 2048)}
"""Maps a kind of device to the row lengths: one for all checks, and one for bf16 alone."""
LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 1e-2}
"""Maps each precision to the largest allowed difference, in nats, from the loss in plain fp32."""


def check_gpu(
    sizes: Sequence[str] = (), dry_run: bool = False, budget: float = float("inf")
) -> Iterator[Row]:
    """Check kernels and training; yield a row for the machine, then a row for each check.

    Args:
        sizes: the official sizes to check; empty: one size for each head dim.
        dry_run: check tiny CPU tensors instead.
        budget: seconds after which no check starts; each skipped check gets a row.

    Raises:
        ConfigError: no CUDA device (outside a dry run), or an unknown size.
        PythiaError: some checks failed. The error is raised after the last row, or after a failure
            that made the GPU unusable for this process.
    """
    deadline = time.monotonic() + budget
    sizes = check_can_run("correctness", sizes, dry_run)
    device = "cpu" if dry_run else "cuda"
    yield {**machine_row(torch.device(device), {}), "dry_run": dry_run}
    failed, done = [], 0
    for name, check in _checks(sizes, device):
        row: Row = {"kind": "check", "name": name, "outcome": "skipped", "why": SKIPPED}
        if time.monotonic() <= deadline:
            begun = time.monotonic()
            try:
                with dispatch.no_fallback():
                    problem = check()
            except Exception as error:  # of any type, from a compiler or the driver
                problem = reason(error)
            row |= {"outcome": "failed" if problem else "passed", "why": problem[:300]}
            row["seconds"] = round(time.monotonic() - begun, 2)
            failed += [name] if problem else []
            done += 1
        yield {**row, "dry_run": dry_run}
        if row["outcome"] == "failed":
            check_gpu_usable(name)
    if failed:
        raise PythiaError(f"{len(failed)} of {done} GPU checks failed: {', '.join(failed)}")


def _checks(sizes: Sequence[str], device: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield (name, function) for every check; the function returns the problem, or ""."""
    first = sorted(sizes, key=lambda size: size != "160m")
    if device == "cuda":
        for dtype in (torch.bfloat16, torch.float16):
            yield f"sums of products, {dtype}", partial(_sum_problem, dtype)
    yield from _kernel_checks(first[0], "bf16", device)
    modes = ("eager", "graph") if device == "cuda" else ("eager",)
    short, long = SEQ_LENS[device]
    trained = [(mode, "bf16", seq_len) for seq_len in (short, long) for mode in modes]
    trained += [("compile", "bf16", short)] * (device == "cuda")
    trained += [(mode, precision, short) for precision in ("fp32", "fp16") for mode in modes]
    for mode, precision, seq_len in trained:
        name = f"training {mode} {precision}, rows of {seq_len}"
        yield name, partial(_training_problem, mode, precision, device, seq_len)
    for precision in ("fp32", "fp16"):
        yield from _kernel_checks(first[0], precision, device)
    for size in first[1:]:
        yield from _kernel_checks(size, "bf16", device)


def _sum_problem(dtype: torch.dtype) -> str:
    """Return why gradients are not added inside matrix products, or ""."""
    chosen = accumulator(torch.device("cuda"), dtype)
    return "" if chosen is add_in_product_ else f"a slower method is used: {chosen.__name__}"


# --- kernels -------------------------------------------------------------------------------------


def _kernel_checks(
    size: str, precision: str, device: str
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the checks of all kernels at one size, including the attention kernel in Triton."""
    torch.manual_seed(0)
    shape = shape_of(OFFICIAL_SIZES[size], dry_run=device == "cpu", few=True)
    for case in cases(*shape, DTYPES[precision], device):
        ours = {case.kernel: case.ours}
        if dispatch.use_triton(torch.empty(0, device=device)) and "triton" in case.others:
            ours[f"{case.kernel} by triton"] = case.others["triton"]
        for name, kernel in ours.items():
            yield f"{name} {size} {precision}", partial(_kernel_problem, case, kernel)


def _kernel_problem(case: Case, ours: Implementation) -> str:
    """Compare a kernel with fp64 results; return the problem, or "", as `problem` does."""
    inputs, exact = exact_results(case)
    # a mean over many tokens can be exact by chance, so allow the error of one rounding
    least = max(1e-6, *(torch.finfo(x.dtype).eps / 16 for x in inputs))
    return problem(ours, case.reference, inputs, exact, case.differentiated, least)


def problem(
    ours: Implementation,
    reference: Implementation,
    inputs: list[Tensor],
    exact: tuple[list[Tensor], list[Tensor]],
    differentiated: bool = True,
    least: float = 1e-6,
) -> str:
    """Check a kernel against the tolerance rule; return the problem, or "" if there is none.

    Compared with fp64, each output and gradient may have at most twice the error that the reference
    has in the same dtype. A second call must give the same bits. Every element must be written.

    Args:
        reference: the same operation in plain PyTorch.
        exact: the outputs and the gradients in fp64.
        least: a relative error that is always allowed.
    """
    plain = results(reference, inputs, differentiated)
    with deterministic():
        torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN
        actual, again = (results(ours, inputs, differentiated) for _ in range(2))
    for kind, *tensors in zip(("outputs", "gradients"), actual, plain, exact, strict=True):
        for o, p, e in zip(*tensors, strict=True):
            error, bound = relative_error(o, e), max(2 * relative_error(p, e), least)
            if not error <= bound:  # NaN is wrong too
                return (
                    f"{kind} differ from fp64 by a relative error of {error:.2g}; at most "
                    f"{bound:.2g} is allowed"
                )
    pairs = zip((*actual[0], *actual[1]), (*again[0], *again[1]), strict=True)
    return "" if all(torch.equal(a, b) for a, b in pairs) else "a second call gives different bits"


# --- training ------------------------------------------------------------------------------------


def _training_problem(mode: str, precision: str, device: str, seq_len: int) -> str:
    """Train a tiny model in one mode; return the problem, or "" if there is none."""
    losses, weights = _train_tiny_model(precision, device, Execution(mode), seq_len)
    expected = _plain_losses(seq_len)
    error = max(abs(ours - plain) for ours, plain in zip(losses, expected, strict=True))
    allowed = LOSS_TOLERANCE[precision]
    if not error <= allowed:
        return (
            f"a loss differs from that of plain PyTorch by {error:.2g} nats; at most {allowed:.2g} "
            "is allowed"
        )
    if mode == "compile":  # every further run would compile everything again
        return ""
    repetitions = {
        "a second run, in eager mode,": (EAGER, False),
        "a run that is saved and resumed halfway": (Execution(mode), True),
        "a run that recomputes activations": (Execution(mode, recompute=True), False),
    }
    for run, (execution, resumed) in repetitions.items():
        losses_again, weights_again = _train_tiny_model(
            precision, device, execution, seq_len, resumed=resumed
        )
        if losses != losses_again:
            pairs = enumerate(zip(losses, losses_again, strict=True))
            update = next(number for number, (a, b) in pairs if a != b)
            return f"{run} gives different bits, first in the loss of update {update}"
        if not torch.equal(weights, weights_again):
            return f"{run} gives different bits, in the final weights only"
    return ""


@functools.cache
def _plain_losses(seq_len: int) -> list[float]:
    """Train the tiny model in plain PyTorch, in fp32 on the CPU; return the losses in nats."""
    return _train_tiny_model("fp32", "cpu", EAGER, seq_len, PLAIN)[0]


def _train_tiny_model(
    precision: str,
    device: str,
    execution: Execution,
    seq_len: int,
    ops: Ops | None = None,
    resumed: bool = False,
) -> tuple[list[float], Tensor]:
    """Train a tiny model; return the loss of each update in nats, and the final fp32 weights.

    Args:
        resumed: whether a new `Trainer` takes over halfway, with a copy of the first one's state.
    """
    updates = UPDATES[seq_len]
    run = RunConfig(
        ModelConfig(n_layers=2, d_model=128, n_heads=2, vocab_size=VOCAB, max_seq_len=seq_len),
        DataConfig(seq_len=seq_len),
        TrainConfig(updates, batch_size=4, lr_max=2e-3, micro_batch=2, precision=precision),
    )
    make_model = partial(GPTNeoX, ops=ops or kernels.FAST)
    trainer = Trainer(run, torch.device(device), execution, make_model)
    losses = []
    for step in range(updates):
        if resumed and step == updates // 2:
            saved = copy.deepcopy(trainer.state())
            trainer = Trainer(run, torch.device(device), execution, make_model)
            trainer.load_state(step, saved)
        losses.append(trainer.update(_rows(step, seq_len))[0])
    return losses, trainer.flat.flat


def _rows(step: int, seq_len: int) -> np.ndarray:
    """Return training rows, (4, seq_len + 1), that count up by one or two, modulo VOCAB."""
    random = np.random.default_rng(step)
    strides = random.choice([1, 2], p=[0.9, 0.1], size=(4, seq_len + 1))
    return ((random.integers(VOCAB, size=(4, 1)) + strides.cumsum(1)) % VOCAB).astype(np.uint16)
