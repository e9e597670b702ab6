"""GELU in the two forms that matter for Pythia.

Training used GPT-NeoX's fused bias-GELU, the tanh form with constants 0.79788456 and 0.044715; the
converted models on the hub declare the exact (erf) form. They differ by up to 4.7e-4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pythia_core.kernels import native


def gelu_reference(x: Tensor, form: str) -> Tensor:
    """GELU of any tensor, written out; `form` is "tanh" or "erf"."""
    if form == "erf":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * 0.5 * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


class _NativeGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        native.function("gelu_forward", x)(x, y, x.numel())
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        native.function("gelu_backward", x)(x, dy.contiguous(), dx, x.numel())
        return dx


def gelu(x: Tensor, form: str) -> Tensor:
    """GELU of any tensor; `form` is "tanh" or "erf"."""
    if form == "tanh" and native.function("gelu_forward", x):
        return _NativeGelu.apply(x)
    return torch.nn.functional.gelu(x, approximate="tanh" if form == "tanh" else "none")
