"""Causal self-attention on the packed QKV of GPT-NeoX, rotary embedding included: one entry.

QKV rows are grouped per head as [q_h | k_h | v_h] (GPT-NeoX v1.0). Scores are scaled by
1/sqrt(head_dim) under a plain causal mask; attention is *not* reset at document ends, as in the
released models. Two ways of computing it, chosen by measurement:

- torch's scaled_dot_product_attention (flash kernels) under autograd, the default;
- on CPUs, for rows of at most 512 tokens: batched matrix products with the probabilities kept for
  the backward. At 128 tokens torch 2.13's flash kernels are 3x slower, in bf16 10x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pythia_core.kernels import native
from pythia_core.kernels.rotary import rotary_reference

SHORT = 512
"""Longest row for which the probabilities (batch * heads * row^2) are cheap to keep."""


def attention_reference(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Plain torch, every step written out.

    Args:
        qkv: (batch, seq, heads, 3, head_dim), queries and keys not yet rotated.
        cos, sin: (seq, rotary_dims / 2).

    Returns:
        (batch, seq, heads * head_dim)
    """
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))  # each (batch, heads, seq, head_dim)
    q, k = rotary_reference(q, cos, sin), rotary_reference(k, cos, sin)
    scores = q @ k.transpose(-1, -2) / math.sqrt(qkv.shape[-1])
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=qkv.device).triu(1)
    probabilities = scores.masked_fill(future, float("-inf")).softmax(-1)
    return (probabilities @ v).transpose(1, 2).flatten(2)


def _attention_sdpa(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
    q, k = rotary_reference(q, cos, sin), rotary_reference(k, cos, sin)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).flatten(2)


class _NativeAttention(torch.autograd.Function):
    """Batched products in torch, everything between them in single passes (native.c).

    q, k and v live in one (3, batch * heads, seq, head_dim) buffer, their gradients in another.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, seq, heads, _, dim = qkv.shape
        packed = qkv.new_empty(3, batch * heads, seq, dim)
        native.function("pack_rotated", qkv)(
            qkv.contiguous(), packed, cos, sin, batch, seq, heads, dim, cos.shape[-1]
        )
        q, k, v = packed
        scores = torch.bmm(q, k.transpose(1, 2))
        native.function("causal_softmax", qkv)(scores, dim**-0.5, batch * heads, seq)
        ctx.save_for_backward(packed, scores, cos, sin)
        ctx.heads = heads
        return torch.bmm(scores, v).view(batch, heads, seq, dim).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: FunctionCtx, dout: Tensor) -> tuple[Tensor, None, None]:
        packed, probabilities, cos, sin = ctx.saved_tensors
        _, rows, seq, dim = packed.shape
        batch, heads = rows // ctx.heads, ctx.heads
        q, k, v = packed
        dout = dout.view(batch, seq, heads, dim).transpose(1, 2).reshape(rows, seq, dim)
        grads = torch.empty_like(packed)
        torch.bmm(probabilities.transpose(1, 2), dout, out=grads[2])
        dscores = torch.bmm(dout, v.transpose(1, 2))
        native.function("causal_softmax_backward", dout)(
            probabilities, dscores, dim**-0.5, rows, seq
        )
        torch.bmm(dscores, k, out=grads[0])
        torch.bmm(dscores.transpose(1, 2), q, out=grads[1])
        dqkv = packed.new_empty(batch, seq, heads, 3, dim)
        native.function("unpack_rotated", packed)(
            grads, dqkv, cos, sin, batch, seq, heads, dim, cos.shape[-1]
        )
        return dqkv, None, None


def attention(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Causal attention of a packed qkv (batch, seq, heads, 3, head_dim).

    Args:
        cos, sin: (seq, rotary_dims / 2), fp32.

    Returns:
        (batch, seq, heads * head_dim)
    """
    if qkv.shape[1] <= SHORT and native.function("pack_rotated", qkv):
        return _NativeAttention.apply(qkv, cos, sin)
    return _attention_sdpa(qkv, cos, sin)
