"""A linear map that computes with a copy of its parameters in the compute dtype.

The parameters and their gradients are in fp32. The copy is refreshed once per update
(pythia_core.training.optimizer), not before each use as under autocast.

On a CUDA device in half precision, the backward can also add the gradients of the parameters to
fp32 buffers itself. Otherwise autograd writes each gradient in half precision, converts it, and
adds it: 20 bytes per weight and micro-batch instead of 8. The gradient of a bias is the sum of dy
over rows. If the next operation's backward sums dy where it writes dy, dy is not read again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pythia_core.kernels.dispatch import warn_once

Accumulator = Callable[[Tensor, Tensor, Tensor], object]
"""A function (total, a, b) that adds a^T b to the fp32 `total`, in place."""


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `x @ weight.T + bias`, computed in the dtype of `x`."""
    bias = bias if bias is None else bias.to(x.dtype)
    return torch.nn.functional.linear(x, weight.to(x.dtype), bias)


# --- sums of products ------------------------------------------------------------------------


def add_in_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a^T b to `total` inside the matrix product, without rounding the product."""
    torch.addmm(total, a.t(), b, out_dtype=torch.float32, out=total)


def add_fp32_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a^T b to `total`; the product is written in fp32 first."""
    total += torch.mm(a.t(), b, out_dtype=torch.float32)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a^T b to `total`; the product is rounded to the dtype of `a` and `b` first."""
    if a.dtype == torch.float32:
        total.addmm_(a.t(), b)
    else:
        total += torch.mm(a.t(), b)


@functools.cache
def accumulator(device: torch.device, dtype: torch.dtype) -> Accumulator:
    """Return the fastest correct way to add products of matrices in `dtype` on `device`.

    torch documents `out_dtype` for CUDA devices only, and passing `out` with it has not always
    worked (pytorch/pytorch#154086). Each way is tried once, on sums that fp32 represents exactly.

    Raises:
        torch.OutOfMemoryError: the device has no memory left for the trials.
    """
    if device.type == "cuda" and dtype != torch.float32:
        for add in (add_in_product_, add_fp32_product_):
            if adds_exactly(add, device, dtype):
                return add
            warn_once(
                f"{add.__name__} with {dtype} is not exact on this GPU; a slower method is used"
            )
    return add_product_


def adds_exactly(add: Accumulator, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether `add` gives every bit of a sum that needs more digits than `dtype` has."""
    numbers = torch.arange(64 * 48, device=device)
    a, b = (numbers % 5 - 2).view(64, 48).to(dtype), (numbers % 7 - 3).view(64, 48).to(dtype)
    start = (numbers[: 48 * 48].view(48, 48) % 11).float() + 2**-12
    total = start.clone()
    try:
        add(total, a, b)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError):
        return False
    return torch.equal(total.double(), start.double() + a.double().t() @ b.double())


def add_column_sums_(total: Tensor, dy: Tensor) -> None:
    """Add the sums of dy (n, d) over its rows to the fp32 vector `total` (d,).

    `dy` may also have more dims, if its elements are in the same order.
    """
    total.add_(dy.reshape(-1, len(total)).sum(0, dtype=torch.float32))


class _ColumnSums(torch.autograd.Function):
    """An autograd function that returns its input; the backward adds dy's column sums."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, bias_grad: Tensor) -> Tensor:
        ctx.bias_grad = bias_grad
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        add_column_sums_(ctx.bias_grad, dy)
        return dy, None


def with_bias_gradient(y: Tensor, bias_grad: Tensor | None) -> Tensor:
    """Return `y`; the backward also adds the column sums of the gradient of `y` to `bias_grad`.

    Used where a bias has a gradient buffer and no kernel of the next operation sums its gradient.
    Without `bias_grad`, `y` is returned unchanged.
    """
    return y if bias_grad is None else _ColumnSums.apply(y, bias_grad)


# --- the operation ---------------------------------------------------------------------------


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
        grads: Sequence[Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x, weight_c)
        ctx.biased, ctx.grads = bias_c is not None, grads
        if bias_c is None:
            return torch.mm(x, weight_c.t())
        return torch.addmm(bias_c, x, weight_c.t())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_c = ctx.saved_tensors
        dx = torch.mm(dy, weight_c) if ctx.needs_input_grad[0] else None
        if ctx.grads:
            accumulator(dy.device, dy.dtype)(ctx.grads[0], dy, x)
            if ctx.biased and len(ctx.grads) > 1:
                add_column_sums_(ctx.grads[1], dy)
            return dx, None, None, None, None, None
        dweight = torch.mm(dy.t(), x).float()
        dbias = dy.sum(0).float() if ctx.biased else None
        return dx, dweight, dbias, None, None, None


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_c: Tensor,
    bias_c: Tensor | None,
    grads: Sequence[Tensor] = (),
) -> Tensor:
    """Return `x @ weight_c.T + bias_c`, (n, out), for x (n, in).

    Args:
        weight, bias: the fp32 parameters, (out, in) and (out,), which receive the gradients.
        weight_c, bias_c: copies of the parameters in the dtype of `x`. Both biases are None if the
            next operation adds the bias.
        grads: fp32 buffers for the gradients of weight and bias, to which the backward adds them
            instead of returning them to autograd. With only the first, the next operation adds the
            gradient of the bias; with none, autograd receives the gradients.
    """
    # detached: in fp32, copy and master are one tensor, which torch.compile refuses as two inputs
    bias_c = bias_c if bias_c is None else bias_c.detach()
    if not torch.is_grad_enabled():
        return torch.nn.functional.linear(x, weight_c, bias_c)
    return _Linear.apply(x, weight, bias, weight_c.detach(), bias_c, grads)
