"""A linear map that computes with a copy of its parameters in the compute dtype.

The parameters and their gradients are in fp32. The copy is refreshed once per update
(pythia_core.training.optimizer), not before each use as under autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x @ weight.T + bias`, computed in the dtype of `x`."""
    bias = bias if bias is None else bias.to(x.dtype)
    return torch.nn.functional.linear(x, weight.to(x.dtype), bias)


class _Linear(torch.autograd.Function):
    """An autograd function for `linear`. The gradients of the parameters are in fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weight_c: Tensor,
        bias_c: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_c)
        ctx.biased = bias_c is not None
        if bias_c is None:
            return torch.mm(x, weight_c.t())
        return torch.addmm(bias_c, x, weight_c.t())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_c = ctx.saved_tensors
        dx = torch.mm(dy, weight_c) if ctx.needs_input_grad[0] else None
        dweight = torch.mm(dy.t(), x).float()
        dbias = dy.sum(0).float() if ctx.biased else None
        return dx, dweight, dbias, None, None


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, weight_c: Tensor, bias_c: Tensor | None
) -> Tensor:
    """Return `x @ weight_c.T + bias_c`, (n, out), for x (n, in).

    Args:
        weight, bias: the fp32 parameters, (out, in) and (out,), which receive the gradients.
        weight_c, bias_c: copies of the parameters in the dtype of `x`. Both biases are None if the
            next operation adds the bias.
    """
    # detached: in fp32, copy and master are one tensor, which torch.compile refuses as two inputs
    bias_c = bias_c if bias_c is None else bias_c.detach()
    if not torch.is_grad_enabled():
        return torch.nn.functional.linear(x, weight_c, bias_c)
    return _Linear.apply(x, weight, bias, weight_c.detach(), bias_c)
