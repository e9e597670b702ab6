"""Predicts the duration of a training step on one H100.

The operations and bytes of a step follow from the architecture and our code. The rates of the GPU
are *estimates* from published kernels and data sheets, made before this project measured anything;
each is a named constant. Power limits and gaps between kernel launches are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError

SEQ_LEN = 2048
UPDATE_TOKENS = 2**21
"""Tokens per update of the released models: 1,024 rows of 2,048."""
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

ATTENTION_TFLOPS = {
    32: (200, 130),
    64: (334, 249),
    80: (300, 225),
    128: (484, 293),
    256: (278, 185),
}
"""Maps each head dim to (TFLOP/s of the forward pass, TFLOP/s of the backward pass) of causal
attention at 2,048 tokens [estimates of torch's own attention]."""
BANDWIDTH = 2.4
"""TB/s of the passes over activations and logits [estimate]. Our code and torch.compile run Triton
kernels, so both are assumed to attain it."""
VOCAB_EXTRA, VOCAB_CAP = 0.10, 0.88
"""The matrix products with the vocabulary attain EFFICIENCY + VOCAB_EXTRA of MATMUL, but at most
the fraction VOCAB_CAP."""
VOCAB_BANDWIDTH = 2.6
"""TB/s of the matrix products with the vocabulary, which read or write 10 bytes per logit."""
CHUNK_LOGITS = 2**28
"""Logits that our loss has in memory at a time, as in pythia_core.kernels.cross_entropy."""

# --- the traffic of a step -------------------------------------------------------------------


@dataclass(frozen=True)
class Traffic:
    """The memory traffic of one implementation of the training step, counted by hand.

    Attributes:
        passes: for each operation of a layer, how often its two passes read or write a
            bf16 tensor of shape (tokens, width). The fp32 residual stream counts twice.
        ends: the same for the embedding, the last residual sum and the final LayerNorm together.
        loss_bytes: bytes per logit that the loss reads and writes.
        weight_bytes: bytes per weight and micro-batch, to cast the weight and to add its gradient.
        vocab_weight_bytes: the same for the unembedding: (fixed, for each chunk of the logits).
    """

    passes: dict[str, int]
    ends: int
    loss_bytes: int
    weight_bytes: int
    vocab_weight_bytes: tuple[int, int]


TRAFFIC = {
    # torch.compile of the plain formulas, at its best: it sums the gradients of LayerNorm's
    # parameters in the pass that computes dx. Those of biases take their own passes.
    "compiled": Traffic(
        {"layer_norm_pair": 17, "split_rotated": 10, "bias_gelu_tanh": 24, "other biases": 5},
        ends=20,
        loss_bytes=6,
        weight_bytes=26,
        vocab_weight_bytes=(26, 0),
    ),
    # at both ends torch's own operations run one by one; the first block, which has no sum to add,
    # saves about what the scaling of the loss's gradient costs
    "ours": Traffic(
        {"layer_norm_pair": 17, "split_rotated": 7, "bias_gelu_tanh": 20, "other biases": 2},
        ends=58,
        loss_bytes=4,
        weight_bytes=8,
        vocab_weight_bytes=(16, 8),
    ),
}
EMBEDDING_BYTES = 20
"""Bytes per embedding weight and micro-batch to compute and add its gradient, in both variants."""
MICRO_TOKENS = 32_768
"""Tokens per micro-batch that the predictions assume by default."""


def parts(
    model: ModelConfig,
    implementation: str,
    seq_len: int = SEQ_LEN,
    micro_tokens: int = MICRO_TOKENS,
) -> dict[str, float]:
    """Predict the nanoseconds per token of each part of a training step, without the optimizer.

    Args:
        implementation: a key of TRAFFIC.
        seq_len: tokens per row. Below SEQ_LEN, attention is predicted to be slower by a factor of
            sqrt(SEQ_LEN / seq_len) [a guess].
        micro_tokens: tokens per micro-batch.

    Returns:
        `gemm`: matrix products of the layers
        `logits`: matrix products with the vocabulary
        `attention`
        `elementwise`: memory-bound passes over activations
        `loss`
        `gradients`: casting weights and adding their gradients, once per micro-batch

    Raises:
        ConfigError: there is no estimate for the head dim of the model.
    """
    if model.head_dim not in ATTENTION_TFLOPS:
        raise ConfigError(
            f"there is no speed estimate for heads of {model.head_dim} dims, only for "
            f"{', '.join(map(str, ATTENTION_TFLOPS))}; choose a size of the scale `gpu` or an "
            "official size"
        )
    traffic, d, n_layers, vocab = (
        TRAFFIC[implementation],
        model.d_model,
        model.n_layers,
        model.vocab_size,
    )
    efficiency = float(np.interp(d, list(EFFICIENCY), list(EFFICIENCY.values())))
    slower = math.sqrt(max(1.0, SEQ_LEN / seq_len))
    forward_rate, backward_rate = (rate / slower for rate in ATTENTION_TFLOPS[model.head_dim])
    scores = 2 * d * (seq_len + 1) * n_layers  # two products per forward pass, half masked
    fixed, per_chunk = traffic.vocab_weight_bytes
    chunks = math.ceil(micro_tokens * vocab / CHUNK_LOGITS)
    vocab_bytes = EMBEDDING_BYTES + fixed + per_chunk * chunks
    weight_bytes = 12 * d * d * n_layers * traffic.weight_bytes + d * vocab * vocab_bytes
    times = {
        "gemm": 72 * d * d * n_layers / (efficiency * MATMUL),
        "logits": max(
            6 * d * vocab / (min(efficiency + VOCAB_EXTRA, VOCAB_CAP) * MATMUL),
            10 * vocab / VOCAB_BANDWIDTH,
        ),
        "attention": scores / forward_rate + 2.5 * scores / backward_rate,
        "elementwise": (sum(traffic.passes.values()) * n_layers + traffic.ends) * 2 * d / BANDWIDTH,
        "loss": traffic.loss_bytes * vocab / BANDWIDTH,
        "gradients": weight_bytes / micro_tokens / COPY,
    }
    return {name: value / 1e3 for name, value in times.items()}  # FLOP / (TFLOP/s) = ps


def ns_per_token(
    model: ModelConfig,
    implementation: str,
    seq_len: int = SEQ_LEN,
    micro_tokens: int = MICRO_TOKENS,
) -> float:
    """Predict the nanoseconds per token of a training step, without the optimizer."""
    return sum(parts(model, implementation, seq_len, micro_tokens).values())


def optimizer_seconds(model: ModelConfig) -> float:
    """Predict the seconds that an update takes after its last micro-batch.

    This moves 38 bytes per parameter: AdamW 30, the norm of the gradient 4, zeroing the gradient 4.
    """
    return 38 * model.n_params / (COPY * 1e12)


PROFILED_PARTS = {
    "products": ("gemm", "logits", "gradients"),
    "attention": ("attention",),
    "elementwise": ("elementwise",),
    "loss": ("loss",),
}
"""Maps the parts of a step that a profiler can tell apart to those of `parts`."""


def predicted_profile(
    model: ModelConfig, implementation: str, micro_tokens: int
) -> dict[str, float]:
    """Predict the milliseconds of each part of a profile, for an update with one micro-batch."""
    ns = parts(model, implementation, micro_tokens=micro_tokens)
    ms = {
        part: 1e-6 * micro_tokens * sum(ns[n] for n in names)
        for part, names in PROFILED_PARTS.items()
    }
    return {**ms, "optimizer": 1e3 * optimizer_seconds(model)}


def predicted_tokens_per_s(
    model: ModelConfig,
    implementation: str,
    tokens_per_update: int = UPDATE_TOKENS,
    micro_tokens: int = MICRO_TOKENS,
) -> float:
    """Predict the tokens per second of training, including the optimizer."""
    seconds = ns_per_token(model, implementation, micro_tokens=micro_tokens) / 1e9
    return 1 / (seconds + optimizer_seconds(model) / tokens_per_update)


def kernel_bytes(kernel: str, model: ModelConfig, implementation: str) -> float | None:
    """Predict the bytes per token that an operation moves in all layers; None if it is not counted.

    Args:
        kernel: a name in `Traffic.passes`, or "linear_cross_entropy".
    """
    traffic = TRAFFIC[implementation]
    if kernel == "linear_cross_entropy":
        return float(traffic.loss_bytes * model.vocab_size)
    passes = traffic.passes.get(kernel)
    return None if passes is None else float(2 * passes * model.d_model * model.n_layers)


def predicted_ratio(kernel: str, model: ModelConfig) -> float:
    """Predict the time that torch.compile takes for an operation, divided by our kernel's time.

    The loss includes its matrix products. AdamW moves the same bytes in both.
    """
    compiled, ours = (kernel_bytes(kernel, model, name) for name in ("compiled", "ours"))
    if compiled is None or ours is None:
        return 1.0
    if kernel == "split_rotated":  # includes the gradient of the bias, as ours does
        compiled += 2 * 3 * model.d_model * model.n_layers
    products = 0.0
    if kernel == "linear_cross_entropy":
        products = 1e3 * BANDWIDTH * parts(model, "ours")["logits"]  # in bytes of passes
    return (products + compiled) / (products + ours)


def peak_tflops(device: str) -> float | None:
    """Return the dense bf16 TFLOP/s of the device with this name; None if PEAKS lacks the name."""
    return next((peak for name, peak in PEAKS if name in device), None)
