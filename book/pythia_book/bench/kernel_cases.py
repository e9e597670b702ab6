"""The operations that `bench kernels` measures: inputs, contenders, the least work, fp64 truth.

The least work reads each operand once and writes each result once, and of a causal attention counts
the products of pairs that are not in the future: contenders that do more are slower by the same
number, and the formula stands in every row.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pythia_core import kernels
from pythia_core.kernels.adamw import AdamW, Moving, adamw_, adamw_reference_, passes_
from pythia_core.kernels.attention import attention_by, attention_reference
from pythia_core.kernels.attention_backends import LIBRARIES
from pythia_core.kernels.cross_entropy import linear_cross_entropy_reference
from pythia_core.kernels.gelu import bias_gelu_reference
from pythia_core.kernels.layer_norm import layer_norm_pair_reference
from pythia_core.kernels.rotary import split_rotated_reference

Contender = Callable[..., Tensor | Sequence[Tensor]]


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
    ours: Contender
    reference: Contender
    exact: Contender
    unit: str
    work: dict[str, tuple[float, str]]
    others: dict[str, Contender] = field(default_factory=dict)
    differentiated: bool = True


def _liger(targets: Tensor, dtype: torch.dtype) -> dict[str, Contender]:
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

    def by(update: Callable[..., None], copy: Tensor | None, skip: Tensor | bool) -> Contender:
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


def _by(library: str, cos: Tensor, sin: Tensor) -> Contender:
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
        {library: _by(library, cos, sin) for library in LIBRARIES},
    )
    yield _adamw(n * d, dtype, device)
