"""Linear map with a compute copy of its weights: matrix products in bf16 (or fp32), fp32 gradients.

The weight that the optimizer owns stays in fp32. The product uses a copy in the compute dtype that
is refreshed once per update (pythia_core.optim), not once per use as autocast does. Gradients of
weight and bias come back in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (..., in) @ weight (out, in)^T + bias (out), in the dtype of `x`."""
    return torch.nn.functional.linear(x, weight.to(x.dtype), bias.to(x.dtype))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, weight_c: Tensor, bias_c: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight_c)
        return torch.addmm(bias_c, x, weight_c.t())

    @staticmethod
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_c = ctx.saved_tensors
        dx = torch.mm(dy, weight_c) if ctx.needs_input_grad[0] else None
        dweight = torch.mm(dy.t(), x).float()
        dbias = dy.sum(0).float()
        return dx, dweight, dbias, None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor, weight_c: Tensor, bias_c: Tensor) -> Tensor:
    """x (n, in) @ weight_c (out, in)^T + bias_c (out); gradients go to `weight` and `bias` in fp32.

    Args:
        weight, bias: fp32 masters. weight_c, bias_c: their copies in the dtype of `x`.
    """
    return _Linear.apply(x, weight, bias, weight_c, bias_c)
