"""LayerNorm of the fp32 residual stream, written in the dtype that the next product reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pythia_core.kernels import native

BLOCKS = 16
"""Partial sums of the weight and bias gradients: a fixed number, whatever the threads."""


def layer_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dim, then rounded to `dtype`.

    Args:
        x: (n, d), fp32 or wider. weight, bias: (d,) in the dtype of `x`.
    """
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (scaled * weight + bias).to(dtype)


class _NativeLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        n, d = x.shape
        x = x.contiguous()
        y = torch.empty_like(x, dtype=dtype)
        mean, rstd = x.new_empty(n), x.new_empty(n)
        native.function("layer_norm", y)(x, weight, bias, y, mean, rstd, float(eps), n, d)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        n, d = x.shape
        dx = torch.empty_like(x)
        dweight, dbias = x.new_empty(BLOCKS, d), x.new_empty(BLOCKS, d)
        native.function("layer_norm_backward", dy)(
            x, dy.contiguous(), weight, mean, rstd, dx, dweight, dbias, n, d, BLOCKS
        )
        return dx, dweight.sum(0), dbias.sum(0), None, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm of x (n, d) with weight (d,), bias (d,), all fp32, into `dtype`."""
    if x.dtype == torch.float32 and native.function("layer_norm", x):
        return _NativeLayerNorm.apply(x, weight, bias, eps, dtype)
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps).to(dtype)
