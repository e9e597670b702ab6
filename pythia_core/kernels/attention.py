"""Causal self-attention with rotary embedding, on the packed QKV of GPT-NeoX.

The packed QKV of a token has, for each head in turn, its query, key and value, as in GPT-NeoX v1.0.
Scores are scaled by 1/sqrt(head_dim), and the mask is purely causal: as in the released models,
attention crosses the ends of documents. There are three implementations:

- On CUDA devices with Triton, queries and keys are rotated in place (kernels.rotary). Attention
  then reads strided views, with the backend that attention_backends selects for the head dim.
- On CPUs with a C compiler, rows of at most 512 tokens are computed in C, one head at a time, so
  that all intermediate values stay in the first-level caches.
- In all other cases, torch's scaled_dot_product_attention (flash kernels) runs under autograd.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pythia_core.kernels import dispatch, native
from pythia_core.kernels.attention_backends import (
    backend_attention,
    check_packed,
    packed_backward,
    packed_forward,
    select_backend,
)
from pythia_core.kernels.linear import add_column_sums_, with_bias_gradient
from pythia_core.kernels.rotary import rotary_reference, rotate_, split_rotated

MAX_NATIVE_SEQ = 512
"""Longest row, in tokens, for which the data of one head fit into the first-level caches."""


def attention_reference(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute causal attention with rotary embedding in plain torch, with every step written out.

    Args:
        qkv: (batch, seq, heads, 3, head_dim), with queries and keys that are not yet rotated.
        cos, sin: cosines and sines of the rotary angles, each (seq, rotary_dims / 2).

    Returns:
        The output of attention, (batch, seq, heads * head_dim).
    """
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))  # each (batch, heads, seq, head_dim)
    q, k = rotary_reference(q, cos, sin), rotary_reference(k, cos, sin)
    scores = q @ k.transpose(-1, -2) / math.sqrt(qkv.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=qkv.device).triu(1)
    probabilities = scores.masked_fill(future, float("-inf")).softmax(-1)
    return (probabilities @ v).transpose(1, 2).flatten(2)


def attention_torch(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute the result of `attention` with torch's scaled_dot_product_attention and autograd."""
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
    q, k = rotary_reference(q, cos, sin), rotary_reference(k, cos, sin)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).flatten(2)


# On CPUs.


class _NativeAttention(torch.autograd.Function):
    """An autograd function for attention on short rows, computed by the C functions of native.c.

    The backward recomputes the probabilities, from the log-sum-exp of each query's scores.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, seq, heads, _, dim = qkv.shape
        qkv = qkv.contiguous()
        out = qkv.new_empty(batch, seq, heads * dim)
        lse = qkv.new_empty(batch, heads, -(-seq // 16) * 16, dtype=torch.float32)
        attend = native.function("attention", qkv.dtype)
        attend(qkv, cos, sin, out, lse, batch, seq, heads, dim, cos.shape[-1])
        ctx.save_for_backward(qkv, cos, sin, lse)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None]:
        qkv, cos, sin, lse = ctx.saved_tensors
        batch, seq, heads, _, dim = qkv.shape
        dqkv = torch.empty_like(qkv)
        attend_backward = native.function("attention_backward", qkv.dtype)
        attend_backward(
            qkv, cos, sin, dout.contiguous(), lse, dqkv, batch, seq, heads, dim, cos.shape[-1]
        )
        return dqkv, None, None


def tree_attention(qkv: Tensor, cos: Tensor, sin: Tensor, ends: Tensor) -> Tensor:
    """Compute attention in rows that hold several texts, without gradients.

    Texts with the same beginning share its tokens. So a row is a tree of tokens, in depth-first
    order. A token attends to its ancestors and itself.

    Args:
        qkv: (batch, seq, heads, 3, head_dim), with queries and keys that are not yet rotated.
        cos, sin: cosines and sines of the rotary angles, each (batch, seq, rotary_dims / 2), fp32.
        ends: for each token, the position after its last descendant, (batch, seq) int64.

    Returns:
        The output of attention, (batch, seq, heads * head_dim).
    """
    batch, seq, heads, _, dim = qkv.shape
    if seq <= MAX_NATIVE_SEQ and qkv.dtype == torch.float32 and native.available(qkv):
        out = qkv.new_empty(batch, seq, heads * dim)
        attend = native.function("tree_attention", qkv.dtype)
        attend(qkv.contiguous(), out, cos, sin, ends, batch, seq, heads, dim, cos.shape[-1])
        return out
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
    q, k = (rotary_reference(x, cos[:, None], sin[:, None]) for x in (q, k))
    token = torch.arange(seq, device=qkv.device)
    mask = (token <= token[:, None]) & (token[:, None] < ends[:, None])  # (batch, seq, seq)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
    return out.transpose(1, 2).flatten(2)


# On CUDA devices.


class _PackedAttention(torch.autograd.Function):
    """An autograd function for our Triton attention on a packed qkv.

    The forward rotates the queries and keys of qkv in place; `kernels.rotary._SplitRotated`
    explains how autograd copes with that. The backward rotates the gradients of the queries and
    keys back, and adds the gradient of qkv's bias.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, bias_grad: Tensor | None
    ) -> Tensor:
        rotate_(qkv, cos, sin, False)
        ctx.bias_grad = bias_grad
        out, lse = packed_forward(*qkv.unbind(3))
        ctx.save_for_backward(qkv, out, lse, cos, sin)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, out, lse, cos, sin = ctx.saved_tensors
        dqkv = packed_backward(dout, *qkv.unbind(3), out, lse)
        rotate_(dqkv, cos, sin, True)
        if ctx.bias_grad is not None:
            add_column_sums_(ctx.bias_grad, dqkv)
        return dqkv, None, None, None


def attention_with_backend(
    qkv: Tensor, cos: Tensor, sin: Tensor, backend: str, bias_grad: Tensor | None = None
) -> Tensor:
    """Compute the result of `attention` with a given backend, on a CUDA device with Triton.

    Args:
        backend: one of `attention_backends.BACKENDS`.

    Raises:
        ConfigError: the backend is unknown, unavailable, or cannot take these tensors.
    """
    if backend != "triton":
        q, k, v = split_rotated(qkv, cos, sin, bias_grad)
        return backend_attention(q, k, v, backend).flatten(2)
    check_packed(qkv[:, :, :, 0])
    qkv = qkv if torch.is_grad_enabled() else qkv.clone()  # see split_rotated
    return _PackedAttention.apply(qkv, cos, sin, bias_grad).flatten(2)


def attention(qkv: Tensor, cos: Tensor, sin: Tensor, bias_grad: Tensor | None = None) -> Tensor:
    """Compute causal attention with rotary embedding, in the fastest way on this device.

    On a CUDA device with Triton, `qkv` may be overwritten (see `kernels.rotary.split_rotated`).

    Args:
        qkv: (batch, seq, heads, 3, head_dim), with queries and keys that are not yet rotated.
        cos: cosines of the rotary angles, (seq, rotary_dims / 2), fp32.
        sin: their sines, in the same shape.
        bias_grad: an fp32 buffer to which the backward adds the gradient of qkv's bias (see
            kernels.linear), (heads * 3 * head_dim,); or None.

    Returns:
        The output of attention, (batch, seq, heads * head_dim).
    """
    device, dtype, head_dim = qkv.device, qkv.dtype, qkv.shape[-1]
    if dispatch.use_triton(qkv) and dispatch.is_supported("rotation", device, dtype, head_dim):
        backend = select_backend(head_dim, dtype, device)
        return attention_with_backend(qkv, cos, sin, backend, bias_grad)
    qkv = with_bias_gradient(qkv, bias_grad)
    if qkv.shape[1] <= MAX_NATIVE_SEQ and native.available(qkv):
        return _NativeAttention.apply(qkv, cos, sin)
    return attention_torch(qkv, cos, sin)
