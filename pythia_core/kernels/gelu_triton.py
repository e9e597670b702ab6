"""Triton kernels that add a bias and apply GELU in one pass over memory.

The forward saves only its input, and the backward recomputes the rest. The number of partial sums
of the bias's gradient, PARTIALS, is fixed, so results do not depend on the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTIALS = 128
ROWS, LANES, WARPS = 16, 256, 4


@triton.jit
def _gelu(x, TANH: tl.constexpr):
    """Return the GELU of x, in the tanh form if TANH, else in the exact form."""
    if TANH:  # (1 + tanh(u)) / 2 = sigmoid(2u), without the cancellation at negative u
        return x * tl.sigmoid(1.59576912 * x * (1.0 + 0.044715 * x * x))
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _gelu_derivative(x, TANH: tl.constexpr):
    """Return the derivative of `_gelu` at x."""
    if TANH:
        s = tl.sigmoid(1.59576912 * x * (1.0 + 0.044715 * x * x))
        return s + x * s * (1.0 - s) * 1.59576912 * (1.0 + 0.134145 * x * x)
    density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density


@triton.jit
def bias_gelu_kernel(
    x_ptr,  # (n, d), contiguous
    bias_ptr,  # (d,)
    y_ptr,  # (n, d), contiguous
    n,
    d,
    TANH: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Compute y, the GELU of x plus the bias, for ROWS rows and LANES columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    mask = (row < n)[:, None] & (lane < d)[None, :]
    at = row.to(tl.int64)[:, None] * d + lane[None, :]
    bias = tl.load(bias_ptr + lane, mask=lane < d, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
    tl.store(y_ptr + at, _gelu(x, TANH).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bias_gelu_backward_kernel(
    x_ptr,  # (n, d), contiguous, like the two below
    dy_ptr,
    dx_ptr,
    bias_ptr,  # (d,)
    partial_ptr,  # (PARTIALS, d) fp32
    n,
    d,
    TANH: tl.constexpr,
    PARTIALS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Compute the gradient of x, and partial sums of the gradient of the bias."""
    program = tl.program_id(0)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = lane < d
    bias = tl.load(bias_ptr + lane, mask=inside, other=0.0).to(tl.float32)
    dbias = tl.zeros((LANES,), tl.float32)
    for start in range(program * ROWS, n, PARTIALS * ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < n)[:, None] & inside[None, :]
        at = row.to(tl.int64)[:, None] * d + lane[None, :]
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        dx = dy * _gelu_derivative(x, TANH)
        dbias += tl.sum(dx, 0)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(partial_ptr + program * d + lane, dbias, mask=inside)


def bias_gelu_forward(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    """Return the GELU of x (n, d) + bias (d,), in the dtype of `x`; the tanh form if `tanh`."""
    x = x.contiguous()
    n, d = x.shape
    y = torch.empty_like(x)
    if n:
        bias_gelu_kernel[(triton.cdiv(n, ROWS), triton.cdiv(d, LANES))](
            x, bias, y, n, d, TANH=tanh, ROWS=ROWS, LANES=LANES, num_warps=WARPS
        )
    return y


def bias_gelu_backward(x: Tensor, bias: Tensor, dy: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of `x`, in its dtype, and of `bias`, in fp32."""
    x, dy = x.contiguous(), dy.contiguous()
    n, d = x.shape
    dx = torch.empty_like(x)
    partial = x.new_empty(PARTIALS, d, dtype=torch.float32)
    bias_gelu_backward_kernel[(PARTIALS, triton.cdiv(d, LANES))](
        x, dy, dx, bias, partial, n, d,
        TANH=tanh, PARTIALS=PARTIALS, ROWS=ROWS, LANES=LANES, num_warps=WARPS,
    )  # fmt: skip
    return dx, partial.sum(0)
