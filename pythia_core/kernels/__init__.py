"""The operations of the model, one per file, each with a reference in plain torch.

A function named `*_reference` defines the correct result. The function without the suffix takes the
fastest exact path on the device. A model gets its operations as an `Ops`: `FAST` has the functions
of this package, `PLAIN` the same formulas in torch alone, which `torch.compile` can fuse freely.

On a CUDA device, `linear_cross_entropy`, `layer_norm_pair`, `bias_gelu` and the rotation in
`attention` run as Triton kernels (see dispatch); the rest of attention has several backends (see
attention_backends). On a CPU with a C compiler, everything but plain matrix products runs in C (see
native). The kernel of the optimizer (adamw) and the operations of evaluation (tree_attention, and
target_log_probabilities, which exists only in C) are not part of `Ops` and not exported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, dtype, float32, nn

from pythia_core.kernels import native
from pythia_core.kernels.attention import attention, attention_torch
from pythia_core.kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from pythia_core.kernels.dispatch import use_triton
from pythia_core.kernels.gelu import bias_gelu, gelu
from pythia_core.kernels.layer_norm import layer_norm, layer_norm_pair
from pythia_core.kernels.linear import linear, linear_reference
from pythia_core.kernels.rotary import rotary_tables, split_rotated

__all__ = [
    "FAST",
    "PLAIN",
    "Ops",
    "attention",
    "bias_gelu",
    "gelu",
    "layer_norm",
    "layer_norm_pair",
    "linear",
    "linear_cross_entropy",
    "rotary_tables",
    "split_rotated",
    "use_triton",
]


def _fuses(x: Tensor) -> bool:
    """Return whether Triton or C code can run the fused operations on this tensor."""
    return use_triton(x) or native.available(x)


@dataclass(frozen=True)
class Ops:
    """The functions that a model calls. Each has the signature of its namesake in this module.

    Attributes:
        fuses: takes the input of a parallel block; returns whether the block calls the fused
            `layer_norm_pair` and `bias_gelu` instead of `layer_norm` and `gelu`.
    """

    linear: Callable[..., Tensor] = linear
    layer_norm: Callable[..., Tensor] = layer_norm
    layer_norm_pair: Callable[..., tuple[Tensor, Tensor, Tensor]] = layer_norm_pair
    gelu: Callable[..., Tensor] = gelu
    bias_gelu: Callable[..., Tensor] = bias_gelu
    attention: Callable[..., Tensor] = attention
    linear_cross_entropy: Callable[..., Tensor] = linear_cross_entropy
    fuses: Callable[[Tensor], bool] = _fuses


def _plain_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_c: Tensor,
    bias_c: Tensor,
    grads: Sequence[Tensor] = (),
) -> Tensor:
    """Compute `linear` in plain torch, without the copies; autograd receives the gradients."""
    return linear_reference(x, weight, bias)


def _plain_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: dtype = float32
) -> Tensor:
    """Compute `layer_norm` with torch's own operation."""
    return nn.functional.layer_norm(x, weight.shape, weight, bias, eps).to(dtype)


def _plain_gelu(x: Tensor, form: str) -> Tensor:
    """Compute `gelu` with torch's own operation."""
    return nn.functional.gelu(x, approximate="none" if form == "erf" else "tanh")


def _plain_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weight_c: Tensor,
    weight_grad: Tensor | None = None,
) -> Tensor:
    """Compute `linear_cross_entropy` in plain torch; autograd receives the gradients."""
    return linear_cross_entropy_reference(hidden, weight, targets)


FAST = Ops()
"""The fastest exact path for every operation."""
PLAIN = Ops(
    linear=_plain_linear,
    layer_norm=_plain_layer_norm,
    gelu=_plain_gelu,
    attention=attention_torch,
    linear_cross_entropy=_plain_linear_cross_entropy,
    fuses=lambda x: False,
)
"""torch's own operations, differentiated by autograd, without any kernel of this package."""
