"""Predicts the duration of a training step on one H100.

The operations and bytes of a step follow from the architecture. The rates of the GPU are
*estimates* from published kernels and data sheets, made before this project measured anything; each
is a named constant. Power limits and gaps between kernel launches are ignored.
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
"""Pairs (part of a device name, dense bf16 TFLOP/s in the data sheet). The first match counts."""
EFFICIENCY = {
    128: 0.30, 256: 0.45, 512: 0.62, 768: 0.72, 1024: 0.78, 2048: 0.88, 2560: 0.88, 4096: 0.92,
}  # fmt: skip
"""Maps a model's width to the fraction of MATMUL that its matrix products attain [estimates]. Other
widths are interpolated."""

# --- execution profiles ----------------------------------------------------------------------

Rates = dict[int, tuple[float, float]]
"""Maps each head dim to (TFLOP/s of the forward pass, TFLOP/s of the backward pass) of causal
attention at 2,048 tokens [estimates]."""

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
    """A set of assumptions about one implementation of the training step.

    Attributes:
        passes: how often a layer reads or writes a bf16 tensor of shape (tokens, width).
        bandwidth: TB/s of these reads and writes.
        attention: the `Rates` of attention.
        loss_bytes: bytes per logit that the loss reads and writes.
        loss_bandwidth: TB/s at which the loss reads and writes.
        extra, most: the matrix products of the layers attain EFFICIENCY + extra of MATMUL, but at
            most the fraction `most`.
        vocab_extra, vocab_most: as `extra` and `most`, for the matrix products with the vocabulary.
        vocab_bandwidth: TB/s of the matrix products with the vocabulary, which read or write 10
            bytes per logit.
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
    """Predict the nanoseconds per token of each part of a training step, without the optimizer.

    Args:
        profile: a name in PROFILES.
        seq_len: tokens per row. Below SEQ_LEN, attention is predicted to be slower by a factor of
            sqrt(SEQ_LEN / seq_len) [a guess].

    Returns:
        `gemm`: matrix products of the layers
        `logits`: matrix products with the vocabulary
        `attention`
        `elementwise`: memory-bound passes of the layers
        `loss`

    Raises:
        ConfigError: there is no estimate for the head dim of the model.
    """
    if model.head_dim not in LIBRARY:
        raise ConfigError(
            f"there is no speed estimate for heads of {model.head_dim} dims; there are estimates "
            f"for {', '.join(map(str, LIBRARY))} dims, as in the scale `gpu` and the official sizes"
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
    """Predict the nanoseconds per token of a training step, without the optimizer."""
    return sum(parts(model, profile, seq_len).values())


def optimizer_seconds(model: ModelConfig) -> float:
    """Predict the seconds of a fused AdamW step, which moves 30 bytes per parameter."""
    return 30 * model.n_params / (COPY * 1e12)


def predicted_tokens_per_s(model: ModelConfig, profile: str, tokens_per_update: int) -> float:
    """Predict the tokens per second of training with a profile, including the optimizer."""
    seconds = ns_per_token(model, profile) / 1e9
    return 1 / (seconds + optimizer_seconds(model) / tokens_per_update)


def peak_tflops(device: str) -> float | None:
    """Return the dense bf16 TFLOP/s of the device with this name; None if PEAKS lacks the name."""
    return next((peak for name, peak in PEAKS if name in device), None)


GOAL = 1.15
"""The target speedup of our kernels over the same model in plain PyTorch with torch.compile."""
