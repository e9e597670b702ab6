"""How fast every kernel is against its plain reference, torch.compile of it, and libraries.

One row per measurement. Three calls to warm up, compilation included, are dropped; then three times
at least twenty calls are timed one by one, each after emptying the caches and between two events of
the device, and the median is taken; a row has the median of the three and their range. Rates count
the least work of an operation: each operand read once, each result written once, and of a causal
attention only the products of pairs that are not in the future; contenders that do more are slower
by the same number, and the formula is in every row. Shares are of a copy and of a matrix product
measured in the same run. Errors are against fp64 on fewer tokens; what torch.compile makes for them
is not what is timed, which is compiled for its own shape, as our kernels are. A contender that
cannot run gives a row that says so, whatever it raises, and the next one is measured: nothing is
timed under another's name. Needs a CUDA device; a dry run does everything on tiny CPU tensors,
where the times mean nothing.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pythia_book.bench.rows import SKIPPED, read_rows
from pythia_core import kernels
from pythia_core.errors import ConfigError, DataError, one_of
from pythia_core.kernels import dispatch
from pythia_core.kernels.adamw import AdamW, Moving, adamw_, adamw_reference_, passes_
from pythia_core.kernels.attention import attention_by, attention_reference
from pythia_core.kernels.attention_backends import BACKENDS
from pythia_core.kernels.cross_entropy import linear_cross_entropy_reference
from pythia_core.kernels.gelu import bias_gelu_reference
from pythia_core.kernels.layer_norm import layer_norm_pair_reference
from pythia_core.kernels.rotary import split_rotated_reference
from pythia_core.suite import OFFICIAL_SIZES, Size
from pythia_core.util.machine import device_info

# --- operations and contenders ---------------------------------------------------------------

Implementation = Callable[..., Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """An operation at one shape.

    Attributes:
        inputs: makes the tensors that are differentiated, or that an update changes.
        exact: the reference for inputs in fp64.
        differentiated: else there is no backward, and the one direction is "both".
        unit: "GB/s" or "TFLOP/s".
        work: by direction, the least bytes moved or operations done, and its formula.
        others: further contenders by name.
    """

    kernel: str
    shape: dict[str, int]
    inputs: Callable[[], list[Tensor]]
    ours: Implementation
    reference: Implementation
    exact: Implementation
    unit: str
    work: dict[str, tuple[float, str]]
    others: dict[str, Implementation] = field(default_factory=dict)
    differentiated: bool = True


def _liger(targets: Tensor, dtype: torch.dtype) -> dict[str, Implementation]:
    """Liger-Kernel's fused loss where it is installed."""
    if importlib.util.find_spec("liger_kernel") is None:
        return {}

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy(hidden, weight.to(dtype), targets)

    return {"liger": loss}


def _adamw(n: int, dtype: torch.dtype, device: str) -> Case:
    """An update of n parameters and their copy in `dtype`."""
    constants, decayed = AdamW(0.9, 0.95, 1e-8, 0.1), n // 2
    factor, skip = torch.full((), 0.5, device=device), torch.zeros((), device=device)

    def by(update: Callable[..., None], copy: Tensor | None, skip: Tensor | bool) -> Implementation:
        def step(p: Tensor, g: Tensor, m: Tensor, v: Tensor) -> list[Tensor]:
            moving = Moving(p, g, m, v, copy, decayed)
            update(moving, constants, 1e-3, 10, factor.to(p), skip)
            return [p, m, v]

        return step

    copy = torch.empty(n, dtype=dtype, device=device)
    return Case(
        "adamw",
        {"parameters": n},
        lambda: [torch.randn(n, device=device) for _ in range(3)] + [torch.rand(n, device=device)],
        by(adamw_, copy, skip),
        by(adamw_reference_, copy, False),  # as a tensor its `if` would cost the rival a wait
        by(adamw_reference_, None, False),
        "GB/s",
        {"both": (n * (7 * 4 + dtype.itemsize), "parameters (4 reads, 3 writes in fp32 + copy)")},
        {"torch (fused)": by(passes_, copy, skip)},
        differentiated=False,
    )


def _by(library: str, cos: Tensor, sin: Tensor) -> Implementation:
    return lambda qkv: attention_by(qkv, cos, sin, library)


def cases(
    rows: int, seq: int, d: int, heads: int, vocab: int, dtype: torch.dtype, device: str
) -> Iterator[Case]:
    """The operations of one model size on `rows` rows of `seq` tokens."""
    n, dim, size = rows * seq, d // heads, dtype.itemsize
    fp32 = {"dtype": torch.float32, "device": device}
    low = {"dtype": dtype, "device": device}
    cos, sin = kernels.rotary_tables(seq, dim // 8 * 2, 10_000.0, torch.device(device))

    targets = torch.randint(vocab, (n,), device=device)
    yield Case(
        "linear_cross_entropy",
        {"tokens": n, "width": d, "vocab": vocab},
        lambda: [torch.randn(n, d, **low), torch.randn(vocab, d, **fp32) / d**0.5],
        lambda h, w: kernels.linear_cross_entropy(h, w, targets, w.detach().to(dtype)),
        lambda h, w: linear_cross_entropy_reference(h, w, targets),
        lambda h, w: torch.nn.functional.cross_entropy(h @ w.to(dtype).to(h).T, targets),
        "TFLOP/s",
        # who computes gradients in the forward differs: only the sum can be compared
        {"both": (6 * n * d * vocab, "6 tokens width vocab")},
        _liger(targets, dtype),
    )
    head_shape = {"batch": rows, "seq": seq, "heads": heads, "head_dim": dim}
    turned = 2 * n * heads * (4 * cos.shape[-1]) * size
    packed = 2 * 3 * n * d * size
    turned_formula = "q and k: 2 (read, write) 2 heads tokens rotated_lanes bytes"
    yield Case(
        "split_rotated",
        head_shape,
        lambda: [torch.randn(rows, seq, heads, 3, dim, **low)],
        lambda qkv: kernels.split_rotated(qkv, cos, sin),
        lambda qkv: split_rotated_reference(qkv, cos, sin),
        lambda qkv: split_rotated_reference(qkv, cos.to(qkv), sin.to(qkv)),
        "GB/s",
        {
            "forward": (turned, turned_formula),
            "backward": (packed, "2 (read, write) 3 tokens width bytes"),
            "both": (turned + packed, "forward + backward"),
        },
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
        {
            "forward": (
                n * d * (2 * 4 + 4 * size),
                "tokens width (x, z in fp32 + a, b, y1, y2 in bytes)",
            ),
            "backward": (
                n * d * (3 * 4 + 3 * size),
                "tokens width (z, dz, dx in fp32 + dy1, dy2, dbranch in bytes)",
            ),
            "both": (n * d * (5 * 4 + 7 * size), "forward + backward"),
        },
    )
    for form in ("tanh", "erf"):
        yield Case(
            f"bias_gelu_{form}",
            {"tokens": n, "width": 4 * d},
            lambda: [torch.randn(n, 4 * d, **low), torch.randn(4 * d, **fp32)],
            lambda x, bias, form=form: kernels.bias_gelu(x, bias, form),
            lambda x, bias, form=form: bias_gelu_reference(x, bias, form),
            # the bias is added as it is rounded for the product
            lambda x, bias, form=form: bias_gelu_reference(x, bias.to(dtype).to(x), form),
            "GB/s",
            {
                "forward": (2 * n * 4 * d * size, "(x, y) tokens width bytes"),
                "backward": (3 * n * 4 * d * size, "(x, dy, dx) tokens width bytes"),
                "both": (5 * n * 4 * d * size, "forward + backward"),
            },
        )
    product = rows * heads * seq * (seq + 1) * dim
    one = "batch heads seq (seq + 1) head_dim"
    yield Case(
        "attention",
        head_shape,
        lambda: [torch.randn(rows, seq, heads, 3, dim, **low)],
        lambda qkv: kernels.attention(qkv, cos, sin),
        lambda qkv: attention_reference(qkv, cos, sin),
        lambda qkv: attention_reference(qkv, cos.to(qkv), sin.to(qkv)),
        "TFLOP/s",
        {
            "forward": (2 * product, f"2 {one}"),
            "backward": (5 * product, f"5 {one}: scores are computed again"),
            "both": (7 * product, f"7 {one}"),
        },
        {library: _by(library, cos, sin) for library in BACKENDS},
    )
    yield _adamw(n * d, dtype, device)


# --- measuring -------------------------------------------------------------------------------

SIZES = ("31m", "160m", "1b", "1.4b", "2.8b")
"""One size of every head dim: 32, 64, 256, 128, 80."""
KERNELS = (
    *("linear_cross_entropy", "split_rotated", "layer_norm_pair"),
    *("bias_gelu_tanh", "bias_gelu_erf", "attention", "adamw"),
)
"""The operations of `cases`."""
DIRECTIONS = ("forward", "backward", "both")
REPEATS, CALLS = 3, 20
METHOD = f"median of {REPEATS} medians of at least {CALLS} single calls, caches emptied before each"


def _timed_calls(
    function: Callable[[], Any], device: str, seconds: float, calls: int
) -> list[float]:
    """Milliseconds of single calls, at least `calls`, over at least `seconds`."""
    cuda = device == "cuda"
    sweep = torch.empty(1 << 28, dtype=torch.int8, device=device) if cuda else None
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < calls or time.perf_counter() < until:
        if cuda:
            sweep.zero_()
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
    """ms (median of the repeats' medians), ms_low, ms_high (their range), calls."""
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


def ceilings(
    device: str, dtype: torch.dtype, side: int, seconds: float, calls: int = CALLS
) -> dict[str, float]:
    """Measured GB/s of a copy (read and written) and TFLOP/s of a square matrix product."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    copy = timing(lambda: out.copy_(a), device, seconds, calls)["ms"]
    product = timing(lambda: torch.mm(a, b, out=out), device, seconds, calls)["ms"]
    return {
        "GB/s": 2 * a.numel() * a.element_size() / copy / 1e6,
        "TFLOP/s": 2 * side**3 / product / 1e9,
    }


def _outputs(implementation: Implementation, leaves: list[Tensor]) -> list[Tensor]:
    made = implementation(*leaves)
    return [made] if isinstance(made, Tensor) else list(made)


def results(
    implementation: Implementation, inputs: list[Tensor], differentiated: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients in fp64, for upstream gradients that are the same in every dtype."""
    if not differentiated:
        return [o.double() for o in _outputs(implementation, [x.clone() for x in inputs])], []
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = _outputs(implementation, [x * 1 for x in leaves])  # some contenders overwrite theirs
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    grads = torch.autograd.grad(outputs, leaves, upstream)
    return [o.detach().double() for o in outputs], [g.double() for g in grads]


def worst(actual: list[Tensor], exact: list[Tensor]) -> float:
    pairs = zip(actual, exact, strict=True)
    return max((((a - e).norm() / e.norm().clamp_min(1e-30)).item() for a, e in pairs), default=0.0)


def exact_results(case: Case) -> tuple[list[Tensor], tuple[list[Tensor], list[Tensor]]]:
    """Inputs to judge an implementation by, the same every time, and what fp64 makes of them."""
    torch.manual_seed(2)
    inputs = case.inputs()
    return inputs, results(case.exact, [x.double() for x in inputs], case.differentiated)


def errors(case: Case, implementation: Implementation) -> dict[str, float]:
    """By direction the largest norm-wise relative error of a result against fp64."""
    inputs, exact = exact_results(case)
    ours = results(implementation, inputs, case.differentiated)
    forward, backward = map(worst, ours, exact)
    return {"forward": forward, "backward": backward, "both": max(forward, backward)}


def _call(case: Case, implementation: Implementation, direction: str) -> Callable[[], Any]:
    """What is timed."""
    if not case.differentiated:
        changed = case.inputs()
        return lambda: implementation(*changed)
    leaves = [x.requires_grad_() for x in case.inputs()]
    outputs = _outputs(implementation, leaves)
    upstream = [torch.randn_like(o) for o in outputs]
    if direction == "forward":
        return lambda: _outputs(implementation, leaves)
    if direction == "backward":
        return lambda: torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)
    return lambda: torch.autograd.grad(_outputs(implementation, leaves), leaves, upstream)


def _peak(call: Callable[[], Any], device: str) -> int | None:
    """Bytes allocated at most during a call beyond what was there before; CUDA only."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(
    case: Case,
    small: Case,
    dtype: torch.dtype,
    device: str,
    seconds: float,
    roof: dict[str, float],
    calls: int = CALLS,
    deadline: float = float("inf"),
) -> Iterator[dict[str, Any]]:
    """A row for every contender and direction.

    Args:
        small: the same operation on few tokens, for the errors.
        roof: as `ceilings` gives it.
        deadline: time.monotonic() after which nothing is begun.
    """
    backend = "inductor" if device == "cuda" else "eager"
    torch.compiler.reset()  # its cache of one function's variants is short
    contenders = {
        "ours": (case.ours, small.ours),
        "reference": (case.reference, small.reference),
        f"torch.compile ({backend})": tuple(
            # not for any shape, which a second one would ask of the compiler by default
            torch.compile(c.reference, backend=backend, dynamic=False)
            for c in (case, small)
        ),
        **{name: (other, small.others[name]) for name, other in case.others.items()},
    }
    for name, (implementation, on_few) in contenders.items():
        common: dict[str, Any] = {
            "kernel": case.kernel,
            "shape": case.shape,
            "dtype": str(dtype).removeprefix("torch."),
            "contender": name,
        }
        wrong: dict[str, float] = {}
        for direction in DIRECTIONS if case.differentiated else DIRECTIONS[-1:]:
            row = {**common, "direction": direction}
            failed = SKIPPED if time.monotonic() > deadline else ""
            try:
                if not failed:
                    with dispatch.no_fallback():
                        wrong = wrong or errors(small, on_few)
                        call = _call(case, implementation, direction)
                        measured = timing(call, device, seconds, calls)
                        measured |= {"peak_bytes": _peak(call, device)}
                    row |= {**measured, "relative_error": wrong[direction]}
            except Exception as error:  # not installed, out of memory, a head dim, of its compiler
                failed = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
            if failed:
                yield {**row, "failed": failed[:200]}
                continue
            if direction in case.work:
                amount, formula = case.work[direction]
                rate = amount / row["ms"] / (1e6 if case.unit == "GB/s" else 1e9)
                row |= {"rate": rate, "unit": case.unit, "share": rate / roof[case.unit]}
                row["formula"] = f"{formula}, over time"
            yield row


def check_can_run(what: str, sizes: Sequence[str], dry_run: bool) -> Sequence[str]:
    """The sizes, of none those of SIZES.

    Raises:
        ConfigError: no CUDA device and no dry run, an unknown size.
    """
    if not dry_run and not torch.cuda.is_available():
        raise ConfigError(f"bench {what} needs a CUDA device; --dry-run runs it on tiny tensors")
    unknown = [s for s in sizes if s not in OFFICIAL_SIZES]
    if unknown:
        raise ConfigError(
            f"bench {what} takes official sizes ({', '.join(OFFICIAL_SIZES)}), got "
            f"{', '.join(unknown)}"
        )
    return sizes or SIZES


def bench_kernels(
    sizes: Sequence[str] = (),
    dry_run: bool = False,
    seconds: float = 0.5,
    only: Sequence[str] = (),
    budget: float = float("inf"),
) -> Iterator[dict[str, Any]]:
    """Rows as they are measured, each complete in itself; the first holds machine and ceilings.

    Args:
        sizes: official sizes (default: one of every head dim).
        dry_run: tiny CPU tensors, to see that everything runs.
        seconds: of timed calls a measurement, at least.
        only: some of KERNELS (default: all).
        budget: seconds after which nothing more is begun; the rows say what was left out.

    Raises:
        ConfigError: no CUDA device and no dry run, an unknown size or kernel.
    """
    deadline = time.monotonic() + budget
    sizes = check_can_run("kernels", sizes, dry_run)
    for name in only:
        if name not in KERNELS:
            raise ConfigError(one_of(name, KERNELS, "kernel"))
    device, dtype = ("cpu" if dry_run else "cuda"), torch.bfloat16
    seconds, calls = (0.0, 1) if dry_run else (seconds, CALLS)
    roof = ceilings(device, dtype, 64 if dry_run else 8192, seconds, calls)
    triton = dispatch.use_triton(torch.empty(0, device=device))
    common = {"device": device_info()["device"], "torch": torch.__version__, "dry_run": dry_run}
    measured = {"copy_gb_per_s": roof["GB/s"], "matmul_tflop_per_s": roof["TFLOP/s"]}
    yield {**common, "triton": triton, "method": METHOD, **measured}
    for name in sizes:
        torch.manual_seed(0)
        shape, few = (shape_of(OFFICIAL_SIZES[name], dry_run, t) for t in (False, True))
        pairs = zip(cases(*shape, dtype, device), cases(*few, dtype, device), strict=True)
        for case, small in pairs:
            if only and case.kernel not in only:
                continue
            for row in measure(case, small, dtype, device, seconds, roof, calls, deadline):
                yield {"size": name, **row, **common}


def shape_of(size: Size, dry_run: bool, few: bool) -> tuple[int, int, int, int, int]:
    """rows, tokens a row, width, heads, vocabulary: 32,768 tokens, or few, or almost nothing."""
    if dry_run:
        return 1, 8, 2 * size.d_model // size.n_heads, 2, 96
    if few:
        return 1, 300, size.d_model, size.n_heads, size.vocab_size
    return 16, 2048, size.d_model, size.n_heads, size.vocab_size


def rows_for(path: str, sizes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of earlier `bench kernels --json FILE` on one machine, the newest of each and the
    first ceilings; of no file, those measured now: on a CUDA device if there is one, else of a dry
    run, which says so in every row.

    Raises:
        DataError: a file that is not there or does not hold such rows.
    """
    if not path:
        return list(bench_kernels(sizes, dry_run=not torch.cuda.is_available()))
    if not Path(path).is_file():
        raise DataError(f"{path} is not a file written by `bench kernels --json`")
    rows = read_rows(Path(path))
    heads = [row for row in rows if "copy_gb_per_s" in row]
    if not heads or "copy_gb_per_s" not in rows[0]:
        raise DataError(
            f"{path} must hold rows of `bench kernels`, the first with its ceilings; it has "
            f"{len(rows)} rows, {len(heads)} of them such"
        )
    if len({(h["device"], h["torch"], h["dry_run"]) for h in heads}) > 1:
        raise DataError(f"{path} holds runs of several machines or versions; give one file each")
    key = ("size", "kernel", "contender", "direction")
    newest = {tuple(row[k] for k in key): row for row in rows if "copy_gb_per_s" not in row}
    return [rows[0], *newest.values()]
