"""What a training step should cost on one H100, predicted before it is measured.

A step is five parts: the layers' matrix products, those of the vocabulary, attention, passes over
memory, and the loss. Work and bytes of each are counted from the architecture; the rates at which a
way of executing them runs are *estimates*, from published kernels and data sheets, made before any
measurement of this project. They are constants here so that a wrong one shows. The optimizer is
apart (`optimizer_seconds`); no launch gaps, no power limit.

Also here: the peaks of data sheets, the goals. Not here: memory (pythia_core.training.memory),
measuring (train_gpu), whole runs (budget), the paper's own cost (recipe).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError, one_of
from pythia_core.training.metrics import flops_per_token

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
"""Dense bf16 TFLOP/s of data sheets, by what a device's name contains; the first match counts."""
EFFICIENCY = {
    128: 0.30, 256: 0.45, 512: 0.62, 768: 0.72, 1024: 0.78, 2048: 0.88, 2560: 0.88, 4096: 0.92,
}  # fmt: skip
"""Share of MATMUL that separate products of a width reach [estimates]; on a line between them."""

# --- the four ways ---------------------------------------------------------------------------

Rates = dict[int, tuple[float, float]]
"""Causal attention by head dim at 2,048 tokens: TFLOP/s forward and backward [estimates]."""

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
LONG_ROWS: Rates = {
    32: (330, 300),
    64: (467, 445),
    80: (450, 400),
    128: (609, 527),
    256: (700, 520),
}
"""What the best kernels reach on long rows without a mask: an upper bound for short ones."""


@dataclass(frozen=True)
class Way:
    """A way of executing the step: how often it passes over memory, and its rates.

    Attributes:
        passes: reads and writes of a bf16 (tokens, width) tensor in every layer.
        bandwidth: TB/s of these. loss_bytes, loss_bandwidth: the loss' bytes a logit, and TB/s.
        extra, most: added to the efficiency of the layers' products, and its limit.
        vocab_extra, vocab_most, vocab_bandwidth: the same of the vocabulary's products, and the
            TB/s below which their 10 bytes a logit do not let them fall.
    """

    label: str
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


WAYS = {
    "eager": Way("eager", 82, 2.3, LIBRARY, 28, 2.4),
    "compiled": Way("torch.compile", 52, 2.4, LIBRARY, 6, 2.5),
    "ours": Way("ours", 34, 2.8, BEST_LIBRARY, 4, 2.8, 0.05, 0.93, 0.13, 0.92, 2.8),
    "ideal": Way("every part at its best", 16, COPY, LONG_ROWS, 4, COPY, 1.0, 1.0, 1.0, 1.0, COPY),
}
NO_LOGITS_WIDTH = 256
"""Up to it the ideal recomputes logits instead of storing them: 8 instead of 6 products' work,"""
NO_LOGITS_SHARE = 0.75
"""at this share of MATMUL, and no bytes of logits [estimate]."""


def efficiency(width: int) -> float:
    """Share of MATMUL of a layer's separate products."""
    return float(np.interp(width, list(EFFICIENCY), list(EFFICIENCY.values())))


def parts(model: ModelConfig, way: str, seq_len: int = SEQ_LEN) -> dict[str, float]:
    """Predicted nanoseconds a token of gemm, logits, attention, elementwise and loss.

    Args:
        model: of a head dim that LIBRARY has.
        way: one of WAYS.
        seq_len: attention on rows shorter than SEQ_LEN is slower by the square root [a guess].

    Raises:
        ConfigError: an unknown way, or a head dim without an estimate.
    """
    if way not in WAYS:
        raise ConfigError(one_of(way, WAYS, "way of training"))
    if model.head_dim not in LIBRARY:
        raise ConfigError(
            f"no speed is predicted for heads of {model.head_dim} dims; there are estimates for "
            f"{', '.join(map(str, LIBRARY))}, as in scale gpu and the official sizes"
        )
    w, d, n_layers, vocab = WAYS[way], model.d_model, model.n_layers, model.vocab_size
    share = min(efficiency(d) + w.extra, w.most)
    slower = math.sqrt(max(1.0, SEQ_LEN / seq_len))
    forward_rate, backward_rate = (rate / slower for rate in w.attention[model.head_dim])
    scores = 2 * d * (seq_len + 1) * n_layers  # the two products of the forward, half masked
    found = {
        "gemm": 72 * d * d * n_layers / (share * MATMUL),
        "logits": max(
            6 * d * vocab / (min(efficiency(d) + w.vocab_extra, w.vocab_most) * MATMUL),
            10 * vocab / w.vocab_bandwidth,
        ),
        "attention": scores / forward_rate + 2.5 * scores / backward_rate,
        "elementwise": w.passes * 2 * d * n_layers / w.bandwidth,
        "loss": w.loss_bytes * vocab / w.loss_bandwidth,
    }
    if way == "ideal" and d <= NO_LOGITS_WIDTH:
        found |= {"logits": 8 * d * vocab / (NO_LOGITS_SHARE * MATMUL), "loss": 0.0}
    return {name: value / 1e3 for name, value in found.items()}  # FLOP / TFLOP/s are picoseconds


def ns_per_token(model: ModelConfig, way: str, seq_len: int = SEQ_LEN) -> float:
    """Predicted nanoseconds a token, without the optimizer."""
    return sum(parts(model, way, seq_len).values())


def optimizer_seconds(model: ModelConfig) -> float:
    """Predicted seconds of a fused AdamW step: 30 bytes a parameter."""
    return 30 * model.n_params / (COPY * 1e12)


def predicted_tokens_per_s(model: ModelConfig, way: str, tokens_per_update: int) -> float:
    """Predicted tokens a second of updates of so many tokens, the optimizer included."""
    seconds = ns_per_token(model, way) / 1e9
    return 1 / (seconds + optimizer_seconds(model) / tokens_per_update)


# --- shares ----------------------------------------------------------------------------------


def peak_tflops(device: str) -> float | None:
    """Dense bf16 TFLOP/s of the data sheet; None for a device that is not in PEAKS."""
    return next((peak for name, peak in PEAKS if name in device), None)


def mfu(
    model: ModelConfig, tokens_per_s: float, peak: float, causal: bool, seq_len: int = SEQ_LEN
) -> float:
    """Model FLOP utilisation: FLOP a token by a convention (metrics.flops_per_token) over a peak.

    Args:
        peak: TFLOP/s. causal: count the half of attention that is computed, else all of it.
    """
    return tokens_per_s * flops_per_token(model, seq_len, causal) / (peak * 1e12)


# --- goals -----------------------------------------------------------------------------------

GOAL = 1.15
"""Times the speed of the same model in plain torch under torch.compile."""
TARGETS = {
    "14m": 3.5e6,
    "31m": 2.2e6,
    "70m": 1.30e6,
    "160m": 520e3,
    "410m": 198e3,
    "1b": 104e3,
    "1.4b": 73e3,
    "2.8b": 35.8e3,
}
"""Tokens a second on one H100 that this project set out to reach, updates of two million tokens."""
