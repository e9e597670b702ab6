"""Compares the speed of every kernel with its reference implementation and with libraries.

A row has the time of one forward and one backward pass of one implementation (see `timing`). On a
GPU, both are recorded in a CUDA graph, so that the launches of many small kernels are not timed,
and the caches are flushed before every replay. The column `rate`, in GB/s or TFLOP/s, counts only
the necessary work: reading each operand once and writing each result once. It leaves out products
with masked keys. The column `share` is the rate divided by the measured rate of a plain copy or
matrix product. Errors are measured on fewer tokens, against fp64. A dry run does everything on tiny
CPU tensors; its times mean nothing.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from pythia_book.bench.rows import COMPILED, SKIPPED, Row, read_rows, require_cuda
from pythia_core import kernels
from pythia_core.errors import ConfigError, PythiaError, one_of
from pythia_core.kernels import PLAIN, dispatch
from pythia_core.kernels.adamw import (
    AdamWBuffers,
    AdamWHyperparameters,
    adamw_,
    adamw_reference_,
    adamw_torch_,
)
from pythia_core.kernels.attention import attention_reference, attention_with_backend
from pythia_core.kernels.attention_backends import BACKENDS, backend_attention, unavailable_reason
from pythia_core.kernels.cross_entropy import linear_cross_entropy_reference
from pythia_core.kernels.gelu import bias_gelu_reference, gelu_reference
from pythia_core.kernels.layer_norm import layer_norm_pair_reference, layer_norm_reference
from pythia_core.kernels.linear import accumulator
from pythia_core.kernels.rotary import split_rotated_reference
from pythia_core.suite import OFFICIAL_SIZES, Size, scale_named, size_named
from pythia_core.training.trainer import DTYPES, capture_cuda, is_out_of_memory
from pythia_core.util.machine import cpu_name, deterministic, device_info

# --- operations and implementations ----------------------------------------------------------

Implementation = Callable[..., Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """An operation at one shape, with the implementations to measure.

    Attributes:
        shape: maps the name of each dimension to its size.
        inputs: creates the inputs, which get gradients or, for an optimizer, are updated.
        ours: our kernel.
        reference: the same operation in plain PyTorch, in the dtype of `ours`.
        exact: the reference in fp64, to be called with fp64 inputs.
        unit: unit of the rate, "GB/s" or "TFLOP/s".
        work: (minimal number of bytes or operations, formula for this number, as text).
        others: maps names to further implementations.
        differentiated: whether the operation has a backward pass.
        then: further work on the gradients, which a training step needs and `ours` includes; it is
            added to the timed calls of the other implementations.
    """

    kernel: str
    shape: dict[str, int]
    inputs: Callable[[], list[Tensor]]
    ours: Implementation
    reference: Implementation
    exact: Implementation
    unit: str
    work: tuple[float, str]
    others: dict[str, Implementation] = field(default_factory=dict)
    differentiated: bool = True
    then: Callable[[Sequence[Tensor]], object] | None = None


def _adamw(n: int, dtype: torch.dtype, device: str) -> Case:
    """Return the case of an AdamW step on `n` fp32 parameters, which also writes a `dtype` copy."""
    constants, decayed = AdamWHyperparameters(0.9, 0.95, 1e-8, 0.1), n // 2
    factor, skip = torch.full((), 0.5, device=device), torch.zeros((), device=device)

    def implementation(
        update: Callable[..., None], copy: Tensor | None, skip: Tensor | bool
    ) -> Implementation:
        """Return a function that applies one update to (p, g, m, v) and returns [p, m, v]."""

        def step(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> list[Tensor]:
            buffers = AdamWBuffers(p, g, m, v, copy, decayed)
            update(buffers, constants, 1e-3, 10, factor.to(p), skip)
            return [p, m, v]

        return step

    copy = torch.empty(n, dtype=dtype, device=device)
    return Case(
        "adamw",
        {"parameters": n},
        lambda: [torch.randn(n, device=device) for _ in range(3)] + [torch.rand(n, device=device)],
        implementation(adamw_, copy, skip),
        implementation(adamw_reference_, copy, False),  # testing a tensor would synchronize
        implementation(adamw_reference_, None, False),
        "GB/s",
        (n * (7 * 4 + dtype.itemsize), "parameters (4 reads, 3 writes in fp32 + copy)"),
        {"torch (fused)": implementation(adamw_torch_, copy, skip)},
        differentiated=False,
    )


def cases(
    rows: int,
    seq: int,
    d: int,
    heads: int,
    vocab: int,
    dtype: torch.dtype,
    device: str,
    fused: bool = True,
) -> Iterator[Case]:
    """Yield the operations of one model size on `rows` rows of `seq` tokens.

    Args:
        d: width of the model.
        fused: whether to yield the operations of a GPU instead of those of a CPU.
    """
    n, dim, size = rows * seq, d // heads, dtype.itemsize
    fp32 = {"dtype": torch.float32, "device": device}
    low = {"dtype": dtype, "device": device}
    cos, sin = kernels.rotary_tables(seq, dim // 8 * 2, 10_000.0, torch.device(device))
    head_shape = {"batch": rows, "seq": seq, "heads": heads, "head_dim": dim}

    targets = torch.randint(vocab, (n,), device=device)
    yield Case(
        "linear_cross_entropy",
        {"tokens": n, "width": d, "vocab": vocab},
        lambda: [torch.randn(n, d, **low), torch.randn(vocab, d, **fp32) / d**0.5],
        lambda h, w: kernels.linear_cross_entropy(h, w, targets, w.detach().to(dtype)),
        lambda h, w: linear_cross_entropy_reference(h, w, targets),
        lambda h, w: torch.nn.functional.cross_entropy(h @ w.to(dtype).to(h).T, targets),
        "TFLOP/s",
        (6 * n * d * vocab, "6 tokens width vocab"),
    )
    if fused:
        rotated_bytes = 2 * n * heads * (4 * cos.shape[-1]) * size
        packed_bytes = 2 * 3 * n * d * size
        yield Case(
            "split_rotated",
            head_shape,
            lambda: [torch.randn(rows, seq, heads, 3, dim, **low)],
            lambda qkv: kernels.split_rotated(qkv, cos, sin),
            lambda qkv: split_rotated_reference(qkv, cos, sin),
            lambda qkv: split_rotated_reference(qkv, cos.to(qkv), sin.to(qkv)),
            "GB/s",
            (
                rotated_bytes + packed_bytes,
                "2 (read, write) tokens bytes (2 heads rotated_lanes + 3 width)",
            ),
            then=lambda gradients: gradients[0].sum((0, 1), dtype=torch.float32),
        )
        yield Case(
            "layer_norm_pair",
            {"tokens": n, "width": d},
            lambda: [
                torch.randn(n, d, **fp32),
                *(torch.randn(n, d, **low) for _ in range(2)),
                *(torch.randn(d, **fp32) for _ in range(4)),
            ],
            lambda x, a, b, *w: kernels.layer_norm_pair(x, (a, b), w, 1e-5, dtype),
            lambda x, a, b, *w: layer_norm_pair_reference(x, (a, b), w, 1e-5, dtype),
            lambda x, a, b, *w: layer_norm_pair_reference(x, (a, b), w, 1e-5, torch.float64),
            "GB/s",
            (n * d * (5 * 4 + 7 * size), "tokens width (5 tensors in fp32, 7 in bytes)"),
        )
        for form in ("tanh", "erf"):
            yield Case(
                f"bias_gelu_{form}",
                {"tokens": n, "width": 4 * d},
                lambda: [torch.randn(n, 4 * d, **low), torch.randn(4 * d, **fp32)],
                lambda x, bias, form=form: kernels.bias_gelu(x, bias, form),
                lambda x, bias, form=form: bias_gelu_reference(x, bias, form),
                # the kernel takes the bias in `dtype`
                lambda x, bias, form=form: bias_gelu_reference(x, bias.to(dtype).to(x), form),
                "GB/s",
                (5 * n * 4 * d * size, "(x twice, y, dy, dx) tokens width bytes"),
            )
    else:
        yield Case(
            "layer_norm",
            {"tokens": n, "width": d},
            lambda: [torch.randn(n, d), *(torch.randn(d) for _ in range(2))],
            lambda x, w, b: kernels.layer_norm(x, w, b, 1e-5, dtype),
            lambda x, w, b: layer_norm_reference(x, w, b, 1e-5, dtype),
            lambda x, w, b: layer_norm_reference(x, w, b, 1e-5, torch.float64),
            "GB/s",
            (n * d * (3 * 4 + 2 * size), "tokens width (x twice, dx in fp32 + y, dy in bytes)"),
            {"torch": lambda x, w, b: PLAIN.layer_norm(x, w, b, 1e-5, dtype)},
        )
        yield Case(
            "gelu",
            {"tokens": n, "width": 4 * d},
            lambda: [torch.randn(n, 4 * d, **low)],
            lambda x: kernels.gelu(x, "tanh"),
            lambda x: gelu_reference(x, "tanh"),
            lambda x: gelu_reference(x, "tanh"),
            "GB/s",
            (5 * n * 4 * d * size, "(x twice, y, dy, dx) tokens width bytes"),
            {"torch": lambda x: PLAIN.gelu(x, "tanh")},
        )
    triton = {"triton": lambda qkv: attention_with_backend(qkv, cos, sin, "triton")}
    yield Case(
        "attention",
        head_shape,
        lambda: [torch.randn(rows, seq, heads, 3, dim, **low)],
        lambda qkv: kernels.attention(qkv, cos, sin),
        lambda qkv: attention_reference(qkv, cos, sin),
        lambda qkv: attention_reference(qkv, cos.to(qkv), sin.to(qkv)),
        "TFLOP/s",
        (
            7 * rows * heads * seq * (seq + 1) * dim,
            "7 batch heads seq (seq + 1) head_dim: scores are computed again",
        ),
        triton if fused else {"torch": lambda qkv: PLAIN.attention(qkv, cos, sin)},
    )
    if fused:
        yield _adamw(n * d, dtype, device)


# --- measuring -------------------------------------------------------------------------------

SIZES = ("31m", "160m", "1b", "1.4b", "2.8b")
"""One model size for each head dim: 32, 64, 256, 128 and 80, in this order."""
KERNELS = (
    *("linear_cross_entropy", "split_rotated", "layer_norm_pair"),
    *("bias_gelu_tanh", "bias_gelu_erf", "attention", "adamw"),
)
"""The names of the operations on a GPU."""
REPEATS, CALLS = 3, 20


def _timed_calls(
    function: Callable[[], Any], device: str, seconds: float, calls: int
) -> list[float]:
    """Call a function `calls` times or, if longer, for `seconds`; return the times in ms."""
    cuda = device == "cuda"
    flush_buffer = torch.empty(1 << 28, dtype=torch.int8, device=device) if cuda else None
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < calls or time.perf_counter() < deadline:
        if cuda:
            flush_buffer.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            begun = time.perf_counter()
            function()
            times.append(1e3 * (time.perf_counter() - begun))
    return times


def timing(
    function: Callable[[], Any], device: str, seconds: float, calls: int = CALLS
) -> dict[str, Any]:
    """Time a function in REPEATS repeats, after three calls to warm up.

    Args:
        seconds: minimum duration of all repeats together.
        calls: minimum number of calls in each repeat.

    Returns:
        `ms`: the median over repeats of the median duration of a call, in milliseconds
        `ms_low`, `ms_high`: the lowest and the highest median of a repeat, in milliseconds
        `calls`: the number of timed calls
    """
    for _ in range(3):
        function()
    repeats = [_timed_calls(function, device, seconds / REPEATS, calls) for _ in range(REPEATS)]
    medians = sorted(map(statistics.median, repeats))
    return {
        "ms": statistics.median(medians),
        "ms_low": medians[0],
        "ms_high": medians[-1],
        "calls": sum(map(len, repeats)),
    }


def peak_rates(
    device: torch.device, dtypes: Sequence[torch.dtype], seconds: float
) -> dict[str, float]:
    """Measure the peak rates of a copy, in GB/s, and of matrix products, in TFLOP/s.

    The keys are "copy" and, for matrix products, the names of the precisions. A copied
    byte counts twice: read and written. Each measurement takes at least `seconds`.
    """
    cuda = device.type == "cuda"
    side, calls = (8192, CALLS) if cuda else (2048, 3) if seconds else (64, 1)
    a, b, out = (torch.randn(side, side, device=device) for _ in range(3))
    copy = timing(lambda: out.copy_(a), device.type, seconds, calls)["ms"]
    rates = {"copy": 2 * out.numel() * out.element_size() / copy / 1e6}
    for dtype in dtypes:
        product = partial(torch.mm, a.to(dtype), b.to(dtype), out=out.to(dtype))
        ms = timing(product, device.type, seconds, calls)["ms"]
        rates[precision_name(dtype)] = 2 * side**3 / ms / 1e9
    return rates


def precision_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in a run's config: "fp32", "bf16" or "fp16"."""
    return next(name for name, value in DTYPES.items() if value == dtype)


def machine_row(device: torch.device, peaks: dict[str, float]) -> Row:
    """Return the row that describes the machine: device, software versions and `peaks`."""
    rates = {name: value for name, value in peaks.items() if name != "copy"}
    return {
        **device_info(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_name(),
        "kind": "machine",
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "triton": dispatch.use_triton(torch.empty(0, device=device)),
        "gradient_sums": accumulator(device, torch.bfloat16).__name__,
        "copy_gb_per_s": peaks.get("copy"),
        "matmul_tflop_per_s": rates,
    }


def machine_with_rates(
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    seconds: float,
    dry_run: bool,
    file: Path | None = None,
) -> Row:
    """Return the `machine_row` with the `peak_rates` of the device.

    Measuring the rates takes ten seconds on a GPU, so the newest rates in the result file `file`
    are used if they were measured on this device with this version of torch.
    """
    here = machine_row(device, {}) | {"dry_run": dry_run}
    same = ("kind", "device", "torch", "dry_run")
    for row in reversed(read_rows(file) if file else []):
        if all(row.get(name) == here[name] for name in same) and row.get("copy_gb_per_s"):
            rates = ("copy_gb_per_s", "matmul_tflop_per_s")
            return here | {name: row[name] for name in rates}
    return machine_row(device, peak_rates(device, dtypes, seconds)) | {"dry_run": dry_run}


def _outputs(implementation: Implementation, leaves: list[Tensor]) -> list[Tensor]:
    """Return the outputs of an implementation as a list."""
    outputs = implementation(*leaves)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def results(
    implementation: Implementation, inputs: list[Tensor], differentiated: bool = True
) -> tuple[list[Tensor], list[Tensor]]:
    """Run an implementation; return its outputs and the gradients of its inputs, in fp64.

    Upstream gradients are the same random numbers in every call, rounded to the output's dtype. If
    `differentiated` is false, the list of gradients is empty.
    """
    if not differentiated:
        return [o.double() for o in _outputs(implementation, [x.clone() for x in inputs])], []
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = _outputs(implementation, [x * 1 for x in leaves])  # some overwrite inputs
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    grads = torch.autograd.grad(outputs, leaves, upstream)
    assert all(g.dtype == leaf.dtype for g, leaf in zip(grads, leaves, strict=True))
    return [o.detach().double() for o in outputs], [g.double() for g in grads]


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference, divided by the norm of the exact tensor."""
    return ((actual.to(exact.device) - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def exact_results(case: Case) -> tuple[list[Tensor], tuple[list[Tensor], list[Tensor]]]:
    """Return the inputs of a case, equal in every call, and the fp64 (outputs, gradients)."""
    torch.manual_seed(2)
    inputs = case.inputs()
    return inputs, results(case.exact, [x.double() for x in inputs], case.differentiated)


def error_of(case: Case, implementation: Implementation) -> float:
    """Return the largest `relative_error` of any output or gradient, compared with fp64."""
    inputs, exact = exact_results(case)
    actual = results(implementation, inputs, case.differentiated)
    pairs = zip((*actual[0], *actual[1]), (*exact[0], *exact[1]), strict=True)
    return max(relative_error(ours, truth) for ours, truth in pairs)


def _call(case: Case, implementation: Implementation) -> Callable[[], Any]:
    """Return a function that runs forward once and, if the case is differentiated, backward."""
    inputs = case.inputs()
    if not case.differentiated:
        return lambda: implementation(*inputs)
    leaves = [x.requires_grad_() for x in inputs]
    upstream = [torch.randn_like(o) for o in _outputs(implementation, leaves)]

    def call() -> None:
        gradients = torch.autograd.grad(_outputs(implementation, leaves), leaves, upstream)
        if case.then and implementation is not case.ours:
            case.then(gradients)

    return call


def _peak_bytes(call: Callable[[], Any], device: str) -> int | None:
    """Return the bytes that a call allocates on a GPU at its peak; None on a CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _timed(
    case: Case, implementation: Implementation, device: str, seconds: float, calls: int
) -> Row:
    """Time an implementation of an operation; return the columns of time and memory."""
    call = _call(case, implementation)
    call()  # compiles
    row: Row = {"peak_bytes": _peak_bytes(call, device)}
    if device == "cuda":  # launching its kernels would take longer than a small operation
        call, row["graph"] = capture_cuda(call), True
    return row | timing(call, device, seconds, calls)


def measure(
    case: Case,
    error_case: Case,
    dtype: torch.dtype,
    device: str,
    seconds: float,
    machine: Row,
    calls: int = CALLS,
    deadline: float = float("inf"),
    compiled: bool = True,
) -> Iterator[Row]:
    """Time every implementation of an operation; yield a row for each.

    Args:
        error_case: the same operation on few tokens, used to measure errors.
        machine: the result row that describes the machine, with its peak rates
            (`machine_with_rates`).
        deadline: the time.monotonic() value after which no measurement starts.
        compiled: whether to time the reference under torch.compile too.

    Raises:
        PythiaError: after a row, if its failure made the GPU unusable for this process.
    """
    implementations = {"ours": (case.ours, error_case.ours)}
    if compiled:
        backend = "inductor" if device == "cuda" else "eager"
        torch.compiler.reset()  # its cache is limited to a few variants per function
        compiled_name = COMPILED.replace("inductor", backend)
        implementations[compiled_name] = tuple(
            # by default, a second shape would make the compiler generate code for any shape
            torch.compile(c.reference, backend=backend, dynamic=False)
            for c in (case, error_case)
        )
    implementations["reference"] = case.reference, error_case.reference
    implementations |= {
        name: (other, error_case.others[name]) for name, other in case.others.items()
    }
    for name, (implementation, error_implementation) in implementations.items():
        row: Row = {
            "kind": "operation",
            "kernel": case.kernel,
            "shape": case.shape,
            "dtype": precision_name(dtype),
            "implementation": name,
        }
        if time.monotonic() > deadline:
            yield {**row, "failed": SKIPPED}
            continue
        try:
            with dispatch.no_fallback():
                row["relative_error"] = error_of(error_case, error_implementation)
                row |= _timed(case, implementation, device, seconds, calls)
            amount, formula = case.work
            memory_bound = case.unit == "GB/s"
            rate = amount / row["ms"] / (1e6 if memory_bound else 1e9)
            rates = machine["matmul_tflop_per_s"]
            peak = machine["copy_gb_per_s"] if memory_bound else rates[precision_name(dtype)]
            row |= {"rate": rate, "unit": case.unit, "share": rate / peak}
            row["formula"] = f"{formula}, over time"
        except Exception as error:  # e.g. not installed, or an unsupported head dim
            row["failed"] = reason(error)[:200]
        yield row
        if "failed" in row:
            check_gpu_usable(f"{name} of {case.kernel}")


OUT_OF_MEMORY = "out of memory"


def reason(error: Exception) -> str:
    """Describe an error in one line, which begins with OUT_OF_MEMORY if a GPU's memory was full."""
    text = " ".join(str(error).split())[:300]
    if is_out_of_memory(error):
        return f"{OUT_OF_MEMORY}: {text}"
    kind = "" if isinstance(error, PythiaError) else type(error).__name__
    return ": ".join(filter(None, (kind, text)))


def check_gpu_usable(failed: str) -> None:
    """Check, after an error, that the GPU still works in this process.

    After e.g. an illegal memory access or a failed recording of a CUDA graph, later calls in the
    process fail, so that the rows of other implementations would be wrong.

    Args:
        failed: what raised the error, in words.

    Raises:
        PythiaError: the GPU does not work any more.
    """
    if not torch.cuda.is_initialized():
        return
    problem = ""
    for _ in range(2):  # the first call may raise an error that is over
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            return
        except RuntimeError as error:
            problem = reason(error)
    raise PythiaError(
        f"{failed} has made the GPU unusable for this process ({problem}), so no later measurement "
        f"was started. Earlier rows are kept; run the benchmark again without {failed}"
    )


def check_can_run(benchmark: str, sizes: Sequence[str], dry_run: bool) -> Sequence[str]:
    """Return the sizes to measure: `sizes`, or SIZES if `sizes` is empty.

    Raises:
        ConfigError: no CUDA device (outside a dry run), or an unknown size.
    """
    if not dry_run:
        require_cuda(f"bench {benchmark}")
    unknown = [s for s in sizes if s not in OFFICIAL_SIZES]
    if unknown:
        raise ConfigError(
            f"unknown sizes {', '.join(unknown)}; bench {benchmark} --sizes accepts the official "
            f"sizes: {', '.join(OFFICIAL_SIZES)}"
        )
    return sizes or SIZES


def bench_kernels(
    sizes: Sequence[str] = (),
    dry_run: bool = False,
    seconds: float = 0.5,
    only: Sequence[str] = (),
    budget: float = float("inf"),
    device: str = "cuda",
    precisions: Sequence[str] = ("bf16",),
    calls: int = CALLS,
    rates_from: Path | None = None,
) -> Iterator[Row]:
    """Measure the kernels; yield a row for the machine, then a row for each measurement.

    Args:
        sizes: on a GPU, official sizes (default: one per head dim); on a CPU, sizes of the scale
            `laptop`, whose batch size and row length are used.
        dry_run: measure tiny CPU tensors instead.
        seconds: minimum seconds of timed calls per measurement.
        only: on a GPU, a subset of KERNELS (default: all).
        budget: on a GPU, seconds after which no measurement starts; each skipped measurement gets
            a row.
        precisions: precisions to measure on a CPU; a GPU is always measured in bf16.
        calls: minimum timed calls per repeat on a CPU; on a GPU, always CALLS.
        rates_from: result file that may have the rates of this GPU (see `machine_with_rates`).

    Raises:
        ConfigError: no CUDA device (outside a dry run), or an unknown size or kernel.
        PythiaError: after a row, if its failure made the GPU unusable for this process.
    """
    if device == "cpu":
        yield from _bench_on_cpu(sizes, precisions, seconds, calls)
        return
    deadline = time.monotonic() + budget
    sizes = check_can_run("kernels", sizes, dry_run)
    for name in only:
        if name not in KERNELS:
            raise ConfigError(one_of(name, KERNELS, "kernel"))
    device, dtype = ("cpu" if dry_run else "cuda"), torch.bfloat16
    seconds, calls = (0.0, 1) if dry_run else (seconds, CALLS)
    machine = machine_with_rates(torch.device(device), (dtype,), seconds, dry_run, rates_from)
    yield machine
    for name in sizes:
        torch.manual_seed(0)
        shape, few = (shape_of(OFFICIAL_SIZES[name], dry_run, t) for t in (False, True))
        pairs = zip(cases(*shape, dtype, device), cases(*few, dtype, device), strict=True)
        for case, error_case in pairs:
            if only and case.kernel not in only:
                continue
            for row in measure(case, error_case, dtype, device, seconds, machine, calls, deadline):
                yield {"size": name, **row, "dry_run": dry_run}


def _bench_on_cpu(
    sizes: Sequence[str], precisions: Sequence[str], seconds: float, calls: int
) -> Iterator[Row]:
    """Measure the CPU kernels, without torch.compile; yield rows as `bench_kernels` does."""
    scale, device = scale_named("laptop"), torch.device("cpu")
    dtypes = [DTYPES[precision] for precision in precisions]
    vocab = scale.run(sizes[0]).model.vocab_size
    machine = machine_with_rates(device, dtypes, seconds, dry_run=False)
    yield machine
    for size, dtype in itertools.product(map(size_named, sizes), dtypes):
        torch.manual_seed(0)
        shape = (scale.data.seq_len, size.d_model, size.n_heads, vocab, dtype, "cpu", False)
        for case, error_case in zip(cases(scale.batch_size, *shape), cases(2, *shape), strict=True):
            for row in measure(
                case, error_case, dtype, "cpu", seconds, machine, calls, compiled=False
            ):
                yield {"size": size.name, **row, "dry_run": False}


def shape_of(size: Size, dry_run: bool, few: bool) -> tuple[int, int, int, int, int]:
    """Return (rows, tokens per row, width, heads, vocabulary) at which to measure a size.

    A dry run has 8 tokens and 2 heads. Other runs have 32,768 tokens or, if `few`, 300 tokens.
    Comparisons with fp64 use few tokens.
    """
    if dry_run:
        return 1, 8, 2 * size.d_model // size.n_heads, 2, 96
    if few:
        return 1, 300, size.d_model, size.n_heads, size.vocab_size
    return 16, 2048, size.d_model, size.n_heads, size.vocab_size


# --- attention by every library --------------------------------------------------------------

HEAD_DIMS = (64, 128, 256, 80, 32)
SEQ_LENS = (2048, 512)
TOKENS, WIDTH = 32_768, 1024
MEASURED = tuple(library for library in BACKENDS if library != "math")
"""All libraries but "math". The library "math" is the plain formula, which stores every score.
Nobody would train with "math"."""
REPETITIONS = 4
"""How often the gradients are computed again, to check that the bits are the same."""


def bench_attention(dry_run: bool = False, budget: float = float("inf")) -> Iterator[Row]:
    """Measure each attention library: its speed, and whether repeated gradients have equal bits.

    Only with equal bits can a run be resumed exactly. Every library is measured with its default
    kernels and with deterministic kernels only. Queries, keys and values are bf16 views of one
    packed tensor.

    Args:
        dry_run: measure tiny CPU tensors instead.
        budget: seconds after which no measurement starts; each skipped measurement gets a row.

    Yields:
        A row for the machine, then a row for each library, shape and kind of kernels.

    Raises:
        ConfigError: no CUDA device (outside a dry run).
        PythiaError: after a row, if its failure made the GPU unusable for this process.
    """
    check_can_run("attention", (), dry_run)
    deadline = time.monotonic() + budget
    yield {**machine_row(torch.device("cpu" if dry_run else "cuda"), {}), "dry_run": dry_run}
    lengths, dims = (SEQ_LENS[-1:], HEAD_DIMS[:2]) if dry_run else (SEQ_LENS, HEAD_DIMS)
    for library in MEASURED:
        columns: Row = {"kind": "attention", "library": library, "dry_run": dry_run}
        if unavailable := unavailable_reason(library):
            yield {**columns, "failed": unavailable}
            continue
        for seq_len, head_dim, strict in itertools.product(lengths, dims, (False, True)):
            row = {**columns, "seq_len": seq_len, "head_dim": head_dim, "deterministic": strict}
            if time.monotonic() > deadline:
                yield {**row, "failed": SKIPPED}
                continue
            try:
                with deterministic(strict):
                    row |= _time_attention(library, seq_len, head_dim, dry_run)
            except Exception as error:  # e.g. an unsupported head dim
                row["failed"] = reason(error)[:200]
            yield row
            if "failed" in row:
                check_gpu_usable(f"attention by {library}")


def _time_attention(library: str, seq_len: int, head_dim: int, dry_run: bool) -> Row:
    """Time forward and backward together at one shape; compare the bits of repeated gradients.

    Columns, besides those of `timing`:
    `bits_repeat`: whether all repeated gradients have the bits of the first ones
    `tflops`: TFLOP/s
    `chosen`: the backend that torch chooses, only for the library "torch"
    """
    device, tokens = ("cpu", seq_len) if dry_run else ("cuda", TOKENS)
    heads = 1 if dry_run else WIDTH // head_dim
    shape = (tokens // seq_len, seq_len, heads)
    generator = torch.Generator(device).manual_seed(0)
    options = {"generator": generator, "device": device, "dtype": torch.bfloat16}
    packed = torch.randn(*shape, 3, head_dim, **options)
    leaves = [part.requires_grad_() for part in packed.unbind(3)]
    upstream = torch.randn(*shape, head_dim, **options)

    def forward_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(backend_attention(*leaves, library), leaves, upstream)

    first = forward_backward()
    repeated = [all(map(torch.equal, first, forward_backward())) for _ in range(REPETITIONS)]
    row = timing(forward_backward, device, 0.0, 1 if dry_run else 5)
    flop = 7 * tokens * heads * (seq_len + 1) * head_dim  # scores are recomputed
    row |= {"bits_repeat": all(repeated), "tflops": flop / row["ms"] / 1e9}
    if library == "torch":
        q, k, v = (part.transpose(1, 2) for part in leaves)
        row["chosen"] = SDPBackend(torch._fused_sdp_choice(q, k, v, None, 0.0, True)).name
    return row
