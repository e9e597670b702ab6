"""What the kernels should gain, counted before any of them was measured: bytes and products.

Bytes are those of one token through all layers, forward and backward, for a kernel and for what
torch.compile makes of the same formula: it fuses neighbouring passes too, so the difference is what
it cannot do. Counts are by hand from the formulas, widths from the official configs; time is bytes
at the rate of a copy. Nothing here has been measured: that is what
pythia_book.studies.kernels.study holds it against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pythia_book.bench.cost_model import COPY, MATMUL, SEQ_LEN
from pythia_core.config import ModelConfig
from pythia_core.kernels.attention_tiles import tiles
from pythia_core.suite import size_named
from pythia_core.training.metrics import flops_per_token

if TYPE_CHECKING:
    import pandas as pd

COPY_GB_PER_S, MATMUL_TFLOP_PER_S = 1e3 * COPY, MATMUL
"""Ceilings of one H100 that predictions use: what a copy and a bf16 product are known to reach."""
LOW, FP32 = 2, 4
"""Bytes of an element."""


@dataclass(frozen=True)
class Prediction:
    """One kernel; `compiled` and `ours` are bytes a token of a config."""

    kernel: str
    fuses: str
    cannot: str
    """What of it a compiler does not do."""
    compiled: Callable[[ModelConfig], float]
    ours: Callable[[ModelConfig], float]


def _rotated(c: ModelConfig) -> float:
    """Elements of q and k that are turned, a token and layer."""
    return 2 * c.n_heads * c.rotary_dims


PREDICTIONS = (
    Prediction(
        "linear_cross_entropy",
        "unembedding, softmax, loss and their gradients, in chunks of rows",
        "keep the logits out of memory: they are read once more",
        lambda c: 3 * LOW * c.vocab_size,
        lambda c: 2 * LOW * c.vocab_size,
    ),
    Prediction(
        "split_rotated",
        "rotation of queries and keys where they lie, and one packed gradient",
        "work in place: it writes new queries and keys, and joins three gradients",
        lambda c: c.n_layers * LOW * (4 * c.d_model + 6 * c.d_model),
        lambda c: c.n_layers * LOW * (2 * _rotated(c) + 6 * c.d_model),
    ),
    Prediction(
        "attention (packed)",
        "the same with an attention that leaves dq, dk and dv side by side",
        "as above; here nothing is joined, and the gradient is turned back in place",
        lambda c: c.n_layers * LOW * (4 * c.d_model + 6 * c.d_model),
        lambda c: c.n_layers * LOW * 4 * _rotated(c),
    ),
    Prediction(
        "layer_norm_pair",
        "the sum of the block before, two LayerNorms of it, and their four parameter gradients",
        "sum the parameter gradients in the pass that makes dx: it reads three tensors again",
        lambda c: c.n_layers * c.d_model * (5 * FP32 + 7 * LOW + FP32 + 2 * LOW),
        lambda c: c.n_layers * c.d_model * (5 * FP32 + 7 * LOW),
    ),
    Prediction(
        "bias_gelu",
        "bias and GELU, their backward, and the gradient of the bias",
        "sum the bias gradient in the pass that makes dx: it reads dx again",
        lambda c: c.n_layers * 4 * c.d_model * LOW * 6,
        lambda c: c.n_layers * 4 * c.d_model * LOW * 5,
    ),
)


def executed_products(head_dim: int) -> tuple[int, int]:
    """Products of queries and keys that our attention does for the backward's least five: seven,
    since two kernels compute scores and dp each; one more where dk and dv are apart."""
    import torch

    split = tiles(head_dim, torch.bfloat16).dv is not None
    return 5, 8 if split else 7


def predictions(sizes: tuple[str, ...], copy_gb_per_s: float = COPY_GB_PER_S) -> pd.DataFrame:
    """size, kernel, compiled and ours (bytes a token), saved, ns a token, and its share of the
    least time of a step (causal FLOP at the rate of a matrix product)."""
    import pandas as pd

    rows = []
    for size in sizes:
        config = size_named(size).model()
        floor = flops_per_token(config, SEQ_LEN) / MATMUL_TFLOP_PER_S / 1e3
        for p in PREDICTIONS:
            compiled, ours = p.compiled(config), p.ours(config)
            ns = (compiled - ours) / copy_gb_per_s
            rows.append(
                {
                    "size": size,
                    "kernel": p.kernel,
                    "compiled_bytes": compiled,
                    "ours_bytes": ours,
                    "saved_bytes": compiled - ours,
                    "saved_ns": ns,
                    "share_of_floor": ns / floor,
                }
            )
    return pd.DataFrame(rows)


def logits_gigabytes(size: str, tokens: int) -> float:
    """What bf16 logits of so many tokens occupy: what the chunked loss never holds."""
    return LOW * size_named(size).model().vocab_size * tokens / 1e9
