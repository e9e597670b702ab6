"""How fast every kernel is against its plain reference and torch.compile, one row a measurement.

Rates count the least work of the operation (each operand read once, each result written once; the
products of a causal attention), so contenders are compared by the same number, and are shown as
shares of a copy and a matrix product measured in the same run. Needs a CUDA device; a dry run does
everything on tiny CPU tensors, where the times mean nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pythia_core import kernels
from pythia_core.errors import ConfigError
from pythia_core.kernels import gpu
from pythia_core.kernels.attention import (
    FLASH_ATTN_FOUND,
    LIBRARIES,
    attention_reference,
    library_attention,
)
from pythia_core.kernels.cross_entropy import linear_cross_entropy_reference
from pythia_core.kernels.gelu import bias_gelu_reference
from pythia_core.kernels.layer_norm import layer_norm_pair_reference
from pythia_core.kernels.rotary import split_rotated_reference
from pythia_core.metrics import device_info
from pythia_core.scales import OFFICIAL_SIZES, Size

Contender = Callable[..., Tensor | Sequence[Tensor]]
SIZES = ("31m", "160m", "1b", "1.4b", "2.8b")
"""One size of every head dim: 32, 64, 256, 128, 80."""
DIRECTIONS = ("forward", "backward", "both")


@dataclass(frozen=True)
class Case:
    """An operation at one shape.

    Attributes:
        inputs: makes the tensors that are differentiated.
        work: by direction, least bytes moved (unit "GB/s") or operations done ("TFLOP/s").
        others: further contenders by name.
    """

    kernel: str
    shape: dict[str, int]
    inputs: Callable[[], list[Tensor]]
    ours: Contender
    reference: Contender
    unit: str
    work: dict[str, float]
    others: dict[str, Contender] = field(default_factory=dict)


def cases(
    rows: int, seq: int, d: int, heads: int, vocab: int, dtype: torch.dtype, device: str
) -> Iterator[Case]:
    """The operations of one model size on `rows` rows of `seq` tokens."""
    n, dim = rows * seq, d // heads
    size = dtype.itemsize
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
        "TFLOP/s",
        {"both": 6 * n * d * vocab},  # who computes gradients in the forward differs
    )
    head_shape = {"batch": rows, "seq": seq, "heads": heads, "head_dim": dim}
    turned = 2 * n * heads * (4 * cos.shape[-1]) * size  # q and k, read and written
    packed = 2 * 3 * n * d * size
    yield Case(
        "split_rotated",
        head_shape,
        lambda: [torch.randn(rows, seq, heads, 3, dim, **low)],
        lambda qkv: kernels.split_rotated(qkv, cos, sin),
        lambda qkv: split_rotated_reference(qkv, cos, sin),
        "GB/s",
        {"forward": turned, "backward": packed, "both": turned + packed},
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
        "GB/s",
        {
            "forward": n * d * (2 * 4 + 4 * size),  # x, a, b -> z, y1, y2
            "backward": n * d * (3 * 4 + 3 * size),  # z, dz, dy1, dy2 -> dx, dbranch
            "both": n * d * (5 * 4 + 7 * size),
        },
    )
    for form in ("tanh", "erf"):
        yield Case(
            f"bias_gelu_{form}",
            {"tokens": n, "width": 4 * d},
            lambda: [torch.randn(n, 4 * d, **low), torch.randn(4 * d, **fp32)],
            lambda x, bias, form=form: kernels.bias_gelu(x, bias, form),
            lambda x, bias, form=form: bias_gelu_reference(x, bias, form),
            "GB/s",
            {
                "forward": 2 * n * 4 * d * size,
                "backward": 3 * n * 4 * d * size,
                "both": 5 * n * 4 * d * size,
            },
        )
    product = rows * heads * seq * (seq + 1) * dim  # one causal product: 2 * pairs * dim
    yield Case(
        "attention",
        head_shape,
        lambda: [torch.randn(rows, seq, heads, 3, dim, **low)],
        lambda qkv: kernels.attention(qkv, cos, sin),
        lambda qkv: attention_reference(qkv, cos, sin),
        "TFLOP/s",
        {"forward": 2 * product, "backward": 5 * product, "both": 7 * product},
        {
            f"{name}, unrotated": lambda qkv, name=name: library_attention(*qkv.unbind(3), name)
            for name in LIBRARIES
            if name != "flash_attn" or FLASH_ATTN_FOUND
        },
    )


def _milliseconds(function: Callable[[], Any], device: str, seconds: float) -> list[float]:
    """Times of single calls, at least three, over `seconds`, caches emptied before each."""
    cuda = device == "cuda"
    sweep = torch.empty(1 << 28, dtype=torch.int8, device=device) if cuda else None
    times: list[float] = []
    for _ in range(3):  # warm-up, compilation included
        function()
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
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


def ceilings(device: str, dtype: torch.dtype, side: int, seconds: float) -> dict[str, float]:
    """Best measured GB/s of a copy (read and written) and TFLOP/s of a square matrix product."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    copy = min(_milliseconds(lambda: out.copy_(a), device, seconds))
    product = min(_milliseconds(lambda: torch.mm(a, b, out=out), device, seconds))
    return {
        "GB/s": 2 * a.numel() * a.element_size() / copy / 1e6,
        "TFLOP/s": 2 * side**3 / product / 1e9,
    }


def _timed(
    case: Case, contender: Contender, direction: str, device: str, seconds: float
) -> tuple[list[float], int | None]:
    """Milliseconds, and on a CUDA device the peak of memory in bytes beyond the inputs."""
    leaves = [x.requires_grad_() for x in case.inputs()]

    def forward() -> list[Tensor]:
        made = contender(*leaves)
        return [made] if isinstance(made, Tensor) else list(made)

    outputs = forward()
    upstream = [torch.randn_like(o) for o in outputs]
    if direction != "backward":
        del outputs

    def call() -> Any:
        if direction == "forward":
            return forward()
        made = outputs if direction == "backward" else forward()
        return torch.autograd.grad(made, leaves, upstream, retain_graph=direction == "backward")

    times = _milliseconds(call, device, seconds)
    if device != "cuda":
        return times, None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return times, torch.cuda.max_memory_allocated() - before


def measure(
    case: Case, dtype: torch.dtype, device: str, seconds: float, roof: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """A row for every contender and direction; a contender that fails gives a row that says so."""
    backend = "inductor" if device == "cuda" else "eager"
    torch.compiler.reset()  # its cache of one function's variants is short
    contenders = {
        "ours": case.ours,
        "reference": case.reference,
        f"torch.compile ({backend})": torch.compile(case.reference, backend=backend),
        **case.others,
    }
    for name, contender in contenders.items():
        for direction in DIRECTIONS:
            row: dict[str, Any] = {
                "kernel": case.kernel,
                "shape": case.shape,
                "dtype": str(dtype).removeprefix("torch."),
                "contender": name,
                "direction": direction,
            }
            try:
                times, peak = _timed(case, contender, direction, device, seconds)
            except (RuntimeError, NotImplementedError) as error:  # out of memory, head dim, ...
                yield {**row, "error": str(error).split("\n")[0][:200]}
                continue
            low, *_, high = statistics.quantiles(times, n=5)
            median = statistics.median(times)
            row |= {"ms": median, "ms_20": low, "ms_80": high, "calls": len(times)}
            row["peak_bytes"] = peak
            if direction in case.work:
                rate = case.work[direction] / median / (1e6 if case.unit == "GB/s" else 1e9)
                row |= {"rate": rate, "unit": case.unit, "share": rate / roof[case.unit]}
            yield row


def bench_kernels(
    sizes: Sequence[str] = (), dry_run: bool = False, seconds: float = 0.5
) -> Iterator[dict[str, Any]]:
    """Rows as they are measured, each complete in itself; the first holds machine and ceilings.

    Args:
        sizes: official sizes (default: one of every head dim).
        dry_run: tiny CPU tensors, to see that everything runs.

    Raises:
        ConfigError: no CUDA device and no dry run, or an unknown size.
    """
    if not dry_run and not torch.cuda.is_available():
        raise ConfigError("bench kernels needs a CUDA device; --dry-run runs it on tiny tensors")
    unknown = [s for s in sizes if s not in OFFICIAL_SIZES]
    if unknown:
        raise ConfigError(
            f"bench kernels takes official sizes ({', '.join(OFFICIAL_SIZES)}), got "
            f"{', '.join(unknown)}"
        )
    device, dtype = ("cpu" if dry_run else "cuda"), torch.bfloat16
    seconds = 0.0 if dry_run else seconds
    roof = ceilings(device, dtype, 64 if dry_run else 8192, seconds)
    triton = gpu.use_triton(torch.empty(0, device=device))
    common = {"device": device_info()["device"], "torch": torch.__version__, "dry_run": dry_run}
    measured = {"copy_gb_per_s": roof["GB/s"], "matmul_tflop_per_s": roof["TFLOP/s"]}
    yield {**common, "triton": triton, **measured}
    for name in sizes or SIZES:
        torch.manual_seed(0)
        for case in cases(*_shape(OFFICIAL_SIZES[name], dry_run), dtype, device):
            for row in measure(case, dtype, device, seconds, roof):
                yield {"size": name, **row, **common}


def _shape(size: Size, dry_run: bool) -> tuple[int, int, int, int, int]:
    """rows, tokens a row, width, heads, vocabulary: 32,768 tokens, or a few heads of the size."""
    if dry_run:
        return 1, 8, 2 * size.d_model // size.n_heads, 2, 96
    return 16, 2048, size.d_model, size.n_heads, size.vocab_size
