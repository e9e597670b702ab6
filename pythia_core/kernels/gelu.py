"""GELU in the two forms that Pythia used.

Training used GPT-NeoX's fused bias-GELU: the tanh form with the constants 0.79788456 and 0.044715.
The converted models on the hub declare the exact (erf) form. The forms differ by up to 4.7e-4.

`bias_gelu` also adds the bias of the preceding matrix product. It runs as Triton kernels on a CUDA
device (gelu_triton), and as C functions on a CPU with a C compiler.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pythia_core.kernels import dispatch, native


def gelu_reference(x: Tensor, form: str) -> Tensor:
    """Return the GELU of a tensor, with every step written out; `form` is "tanh" or "erf"."""
    if form == "erf":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * 0.5 * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


class _NativeGelu(torch.autograd.Function):
    """An autograd function in C for `bias_gelu`, or for `gelu` without biases, in the tanh form."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, bias_c: Tensor | None) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, bias_c)
        y, d = torch.empty_like(x), x.shape[-1]
        native.function("gelu", x.dtype)(x, bias_c, y, x.numel() // d, d)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, bias_c = ctx.saved_tensors
        dx, d = torch.empty_like(x), x.shape[-1]
        sums = None if bias_c is None else x.new_empty(native.BLOCKS, d, dtype=torch.float32)
        native.function("gelu_backward", x.dtype)(
            x, bias_c, dy.contiguous(), dx, sums, x.numel() // d, d, native.BLOCKS
        )
        return dx, None if sums is None else sums.sum(0), None


def gelu(x: Tensor, form: str) -> Tensor:
    """Return the GELU of a tensor, in the fastest way on this device; `form` is "tanh" or "erf"."""
    if form == "tanh" and native.available(x):
        return _NativeGelu.apply(x, None, None)
    return torch.nn.functional.gelu(x, approximate="tanh" if form == "tanh" else "none")


def bias_gelu_reference(x: Tensor, bias: Tensor, form: str) -> Tensor:
    """Return the GELU of x (n, d) + bias (d,), in the dtype of `x`; `form` is "tanh" or "erf"."""
    return gelu_reference(x + bias.to(x.dtype), form)


@torch.library.custom_op("pythia::bias_gelu", mutates_args=())
def _bias_gelu(x: Tensor, bias: Tensor, bias_c: Tensor, tanh: bool) -> Tensor:
    """Return the GELU of x (n, d) + bias_c (d,), from the Triton kernel; `bias` gets a gradient."""
    from pythia_core.kernels.gelu_triton import bias_gelu_forward

    return bias_gelu_forward(x, bias_c, tanh)


@_bias_gelu.register_fake
def _(x: Tensor, bias: Tensor, bias_c: Tensor, tanh: bool) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("pythia::bias_gelu_backward", mutates_args=())
def _bias_gelu_backward(x: Tensor, bias_c: Tensor, dy: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of `x` and the bias, from the Triton kernel."""
    from pythia_core.kernels.gelu_triton import bias_gelu_backward

    return bias_gelu_backward(x, bias_c, dy, tanh)


@_bias_gelu_backward.register_fake
def _(x: Tensor, bias_c: Tensor, dy: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias_c.new_empty(bias_c.shape, dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Save `x` and the copy of the bias for the backward pass."""
    x, bias, bias_c, ctx.tanh = inputs
    ctx.dtype = bias.dtype
    ctx.save_for_backward(x, bias_c)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
    """Return the gradients of `x` and `bias`."""
    x, bias_c = ctx.saved_tensors
    dx, dbias = _bias_gelu_backward(x, bias_c, dy, ctx.tanh)
    return dx, dbias.to(ctx.dtype), None, None


_bias_gelu.register_autograd(_backward, setup_context=_setup)


@dispatch.probe("bias_gelu")
def _probe(device: torch.device, dtype: torch.dtype, d: int) -> None:
    """Try the two Triton kernels on 16 rows of `d` elements (see `dispatch.probe`)."""
    x, bias = torch.zeros(16, d, device=device, dtype=dtype), torch.zeros(d, device=device)
    for tanh in (True, False):
        _bias_gelu_backward(x, bias, _bias_gelu(x, bias, bias, tanh), tanh)


def bias_gelu(x: Tensor, bias: Tensor, form: str, bias_c: Tensor | None = None) -> Tensor:
    """Return the GELU of `x + bias` in the dtype of `x`, in the fastest way on this device.

    Args:
        x: (n, d).
        bias: (d,), the parameter that receives the gradient.
        form: "tanh" or "erf".
        bias_c: copy of `bias` in the compute dtype for the fused kernels; None if there is no copy.

    Raises:
        ConfigError: the Triton kernel cannot take a dtype.
    """
    if dispatch.use_triton(x):
        bias_c = (bias if bias_c is None else bias_c).detach()
        dispatch.check("bias_gelu", {"x": x.dtype, "bias": bias_c.dtype})
        if dispatch.is_supported("bias_gelu", x.device, x.dtype, x.shape[1]):
            return _bias_gelu(x, bias, bias_c, form == "tanh")
    if form == "tanh" and native.available(x):
        return _NativeGelu.apply(x, bias, (bias if bias_c is None else bias_c).to(x.dtype))
    return gelu(x + bias.to(x.dtype), form)
