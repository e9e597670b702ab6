"""Causal self-attention on the packed QKV of GPT-NeoX, rotary embedding included: one entry.

QKV rows are grouped per head as [q_h | k_h | v_h] (GPT-NeoX v1.0). Scores are scaled by
1/sqrt(head_dim) under a plain causal mask; attention is *not* reset at document ends, as in the
released models. Two ways of computing it, chosen by measurement:

- torch's scaled_dot_product_attention (flash kernels) under autograd, the default;
- on CPUs with bf16, rows of at most 512 tokens: batched matrix products with the probabilities
  kept for the backward. torch 2.13's CPU flash backward is about 10x slower in bf16.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pythia_core.kernels.rotary import rotary_reference, rotate_

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


@functools.lru_cache(maxsize=8)
def _causal_bias(seq_len: int, dtype: torch.dtype) -> Tensor:
    return torch.full((seq_len, seq_len), float("-inf"), dtype=dtype).triu(1)


class _ShortAttention(torch.autograd.Function):
    """Batched products; q, k, v live in one (3, batch * heads, seq, head_dim) buffer."""

    @staticmethod
    def forward(ctx: FunctionCtx, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, seq, heads, _, dim = qkv.shape
        packed = qkv.permute(3, 0, 2, 1, 4).contiguous()
        rotate_(packed[:2], cos, sin)
        q, k, v = packed.view(3, batch * heads, seq, dim)
        bias = _causal_bias(seq, qkv.dtype)
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=1 / math.sqrt(dim))
        probabilities = torch.softmax(scores, -1)
        ctx.save_for_backward(packed, probabilities, cos, sin)
        out = torch.bmm(probabilities, v)
        return out.view(batch, heads, seq, dim).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: FunctionCtx, dout: Tensor) -> tuple[Tensor, None, None]:
        packed, probabilities, cos, sin = ctx.saved_tensors
        _, batch, heads, seq, dim = packed.shape
        q, k, v = packed.view(3, batch * heads, seq, dim)
        dout = dout.view(batch, seq, heads, dim).transpose(1, 2).reshape(batch * heads, seq, dim)
        grads = torch.empty_like(packed)
        dq, dk, dv = grads.view(3, batch * heads, seq, dim)
        dprobs = torch.bmm(dout, v.transpose(1, 2))
        dscores = torch._softmax_backward_data(dprobs, probabilities, -1, probabilities.dtype)
        dscores *= 1 / math.sqrt(dim)
        torch.bmm(dscores, k, out=dq)
        torch.bmm(dscores.transpose(1, 2), q, out=dk)
        torch.bmm(probabilities.transpose(1, 2), dout, out=dv)
        rotate_(grads[:2], cos, -sin)
        return grads.permute(1, 3, 2, 0, 4).contiguous(), None, None


def attention(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Causal attention of a packed qkv (batch, seq, heads, 3, head_dim).

    Args:
        cos, sin: (seq, rotary_dims / 2) in the dtype of `qkv`.

    Returns:
        (batch, seq, heads * head_dim)
    """
    short = qkv.shape[1] <= SHORT
    if short and qkv.dtype == torch.bfloat16 and qkv.device.type == "cpu":
        return _ShortAttention.apply(qkv, cos, sin)
    return _attention_sdpa(qkv, cos, sin)
