"""The cost of a training step on one H100, predicted before it is measured.

A step has five parts: matrix products of the layers, those with the vocabulary, attention,
memory-bound passes, and the loss. Operations and bytes of each are counted from the architecture;
the rates are *estimates*, from published kernels and data sheets, made before this project measured
anything. Each is a named constant, so that it can be checked. The optimizer is modelled separately
(`optimizer_seconds`); launch gaps and power limits are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError

SEQ_LEN = 2048
MATMUL = 798.0
"""Attainable TFLOP/s of bf16 matrix products on an H100 [estimate: 81 % of the data sheet]."""
COPY = 3.0
"""Attainable TB/s of a copy on an H100 [estimate]."""
PEAKS = (
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.4),
    ("H200", 989.4),
    ("A100", 312.0),
)
"""Dense bf16 TFLOP/s from data sheets, by a substring of the device's name; first match counts."""
EFFICIENCY = {
    128: 0.30, 256: 0.45, 512: 0.62, 768: 0.72, 1024: 0.78, 2048: 0.88, 2560: 0.88, 4096: 0.92,
}  # fmt: skip
"""Width -> fraction of MATMUL attained by single matrix products [estimates], to interpolate."""

# --- execution profiles ----------------------------------------------------------------------

Rates = dict[int, tuple[float, float]]
"""Head dim -> TFLOP/s of causal attention at 2,048 tokens, forward and backward [estimates]."""

LIBRARY: Rates = {
    32: (200, 130),
    64: (334, 249),
    80: (300, 225),
    128: (484, 293),
    256: (278, 185),
}
BEST_LIBRARY: Rates = {
    32: (220, 140),
    64: (371, 266),
    80: (340, 240),
    128: (560, 347),
    256: (537, 300),
}


@dataclass(frozen=True)
class Profile:
    """One way to execute the step: its number of memory passes, and its rates.

    Attributes:
        passes: reads and writes of a bf16 (tokens, width) tensor per layer.
        bandwidth: TB/s of these passes.
        loss_bytes, loss_bandwidth: bytes per logit that the loss reads and writes, and its TB/s.
        extra, most: added to EFFICIENCY for the layers' products, and the maximum of the sum.
        vocab_extra, vocab_most: the same for the products with the vocabulary.
        vocab_bandwidth: TB/s of those products, which also have to move 10 bytes per logit.
    """

    passes: int
    bandwidth: float
    attention: Rates
    loss_bytes: int
    loss_bandwidth: float
    extra: float = 0.0
    most: float = 1.0
    vocab_extra: float = 0.10
    vocab_most: float = 0.88
    vocab_bandwidth: float = 2.6


PROFILES = {
    "compiled": Profile(52, 2.4, LIBRARY, 6, 2.5),
    "ours": Profile(34, 2.8, BEST_LIBRARY, 4, 2.8, 0.05, 0.93, 0.13, 0.92, 2.8),
}


def parts(model: ModelConfig, profile: str, seq_len: int = SEQ_LEN) -> dict[str, float]:
    """Predicted nanoseconds per token of gemm, logits, attention, elementwise and loss.

    Args:
        model: its head dim must be in LIBRARY.
        profile: a name in PROFILES.
        seq_len: attention on rows shorter than SEQ_LEN is slower by the
            square root of the ratio [a guess].

    Raises:
        ConfigError: there is no estimate for the head dim.
    """
    if model.head_dim not in LIBRARY:
        raise ConfigError(
            f"no speed estimate for head_dim {model.head_dim}; there are estimates for "
            f"{', '.join(map(str, LIBRARY))}, as in scale gpu and the official sizes"
        )
    way, d, n_layers, vocab = PROFILES[profile], model.d_model, model.n_layers, model.vocab_size
    efficiency = float(np.interp(d, list(EFFICIENCY), list(EFFICIENCY.values())))
    share = min(efficiency + way.extra, way.most)
    slower = math.sqrt(max(1.0, SEQ_LEN / seq_len))
    forward_rate, backward_rate = (rate / slower for rate in way.attention[model.head_dim])
    scores = 2 * d * (seq_len + 1) * n_layers  # two products per forward pass, half masked
    times = {
        "gemm": 72 * d * d * n_layers / (share * MATMUL),
        "logits": max(
            6 * d * vocab / (min(efficiency + way.vocab_extra, way.vocab_most) * MATMUL),
            10 * vocab / way.vocab_bandwidth,
        ),
        "attention": scores / forward_rate + 2.5 * scores / backward_rate,
        "elementwise": way.passes * 2 * d * n_layers / way.bandwidth,
        "loss": way.loss_bytes * vocab / way.loss_bandwidth,
    }
    return {name: value / 1e3 for name, value in times.items()}  # FLOP / (TFLOP/s) = ps


def ns_per_token(model: ModelConfig, profile: str, seq_len: int = SEQ_LEN) -> float:
    """Predicted nanoseconds per token, without the optimizer."""
    return sum(parts(model, profile, seq_len).values())


def optimizer_seconds(model: ModelConfig) -> float:
    """Predicted seconds of a fused AdamW step: 30 bytes per parameter."""
    return 30 * model.n_params / (COPY * 1e12)


def predicted_tokens_per_s(model: ModelConfig, profile: str, tokens_per_update: int) -> float:
    """Predicted tokens per second, including the optimizer, for updates of this many tokens."""
    seconds = ns_per_token(model, profile) / 1e9
    return 1 / (seconds + optimizer_seconds(model) / tokens_per_update)


def peak_tflops(device: str) -> float | None:
    """Dense bf16 TFLOP/s from the device's data sheet; None if it is not in PEAKS."""
    return next((peak for name, peak in PEAKS if name in device), None)


GOAL = 1.15
"""Goal of our kernels: speedup over the same model in plain torch under torch.compile."""
