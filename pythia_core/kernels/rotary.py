"""Partial rotary position embedding in the half-split ("rotate-half") layout of GPT-NeoX v1.0.

Only the first `rotary_dims` lanes (dims) of each query and key head are rotated; in Pythia, the
first quarter. Lanes i and i + rotary_dims/2 are a pair. The pair is rotated by the angle
position * base^(-2i / rotary_dims).

On a CUDA device, Triton kernels rotate queries and keys in place in the packed QKV (rotary_triton).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pythia_core.kernels import dispatch
from pythia_core.kernels.linear import with_bias_gradient


def rotary_tables(
    seq_len: int, rotary_dims: int, base: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of the rotary angles, each (seq_len, rotary_dims / 2), fp32."""
    lanes = torch.arange(0, rotary_dims, 2, dtype=torch.float32, device=device)
    inverse_frequency = base ** (-lanes / max(rotary_dims, 1))
    positions = torch.arange(seq_len, dtype=torch.float32, device=device)
    angles = torch.outer(positions, inverse_frequency)
    return angles.cos(), angles.sin()


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (..., seq, head_dim) with the leading lanes rotated."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def split_rotated_reference(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """Compute `split_rotated` in plain torch."""
    q, k, v = qkv.unbind(3)
    q, k = (rotary_reference(x.transpose(1, 2), cos, sin).transpose(1, 2) for x in (q, k))
    return q, k, v


@torch.library.custom_op("pythia::rotate_", mutates_args=("qkv",))
def rotate_(qkv: Tensor, cos: Tensor, sin: Tensor, back: bool) -> None:
    """Rotate the queries and keys of a packed qkv in place; with `back`, by the negative angles."""
    from pythia_core.kernels import rotary_triton

    rotary_triton.rotate_(qkv, cos, sin, back)


@rotate_.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, back: bool) -> None:
    return None


@torch.library.custom_op("pythia::pack_rotated_back", mutates_args=())
def _pack_rotated_back(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the packed qkv and its sums; see `rotary_triton.pack_rotated_back`."""
    from pythia_core.kernels.rotary_triton import pack_rotated_back

    return pack_rotated_back(dq, dk, dv, cos, sin)


@_pack_rotated_back.register_fake
def _(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    batch, seq, heads, dim = dq.shape
    sums = dq.new_empty(heads * 3 * dim, dtype=torch.float32)
    return dq.new_empty(batch, seq, heads, 3, dim), sums


@dispatch.probe("rotation")
def _probe(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Try the two Triton kernels on one head of 16 tokens (see `dispatch.probe`)."""
    qkv = torch.zeros(1, 16, 1, 3, head_dim, device=device, dtype=dtype)
    cos = torch.ones(16, head_dim // 8, device=device)
    rotate_(qkv, cos, cos, False)
    _pack_rotated_back(*qkv.unbind(3), cos, cos)


class _SplitRotated(torch.autograd.Function):
    """An autograd function for `split_rotated`, which rotates in place and returns views of qkv.

    Autograd cannot express a change in place that returns three views, so the change is not
    declared. But the change increases qkv's version counter. So a backward pass that needs the old
    values raises an error.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, bias_grad: Tensor | None
    ) -> tuple[Tensor, ...]:
        rotate_(qkv, cos, sin, False)
        ctx.save_for_backward(cos, sin)
        ctx.bias_grad = bias_grad
        return qkv.unbind(3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        dqkv, sums = _pack_rotated_back(*grads, *ctx.saved_tensors)
        if ctx.bias_grad is not None:
            ctx.bias_grad.add_(sums)
        return dqkv, None, None, None


def split_rotated(
    qkv: Tensor, cos: Tensor, sin: Tensor, bias_grad: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Split qkv (batch, seq, heads, 3, head_dim), and rotate the queries and keys.

    With Triton, qkv is overwritten and the results are views of qkv. Under no_grad, a copy of
    qkv is overwritten instead, because autograd would not notice a later use of qkv.

    Args:
        cos, sin: the tables of `rotary_tables`, each (seq, rotary_dims / 2), fp32.
        bias_grad: an fp32 buffer to which the backward adds the gradient of qkv's bias (see
            kernels.linear), (heads * 3 * head_dim,); or None.

    Returns:
        Rotated queries, rotated keys, and values, each (batch, seq, heads, head_dim).

    Raises:
        ConfigError: the Triton kernel cannot take the dtype, head dim or number of rotary lanes.
    """
    if not dispatch.use_triton(qkv):
        return split_rotated_reference(with_bias_gradient(qkv, bias_grad), cos, sin)
    dim, half = qkv.shape[-1], cos.shape[-1]
    problems = []
    if dim > dispatch.HEAD_DIM_MAX:
        problems.append(f"head_dim is {dim}, but the kernel takes at most {dispatch.HEAD_DIM_MAX}")
    if 2 * half > dim:
        problems.append(f"there are {2 * half} rotary lanes, but a head has only {dim} lanes")
    dispatch.check("split_rotated", {"qkv": qkv.dtype}, problems)
    if not dispatch.is_supported("rotation", qkv.device, qkv.dtype, dim):
        return split_rotated_reference(with_bias_gradient(qkv, bias_grad), cos, sin)
    qkv = qkv if torch.is_grad_enabled() else qkv.clone()
    return _SplitRotated.apply(qkv, cos, sin, bias_grad)
