"""Causal self-attention with rotary embedding, on the packed QKV of GPT-NeoX.

The packed QKV of a token has, for each head in turn, its query, key and value, as in GPT-NeoX v1.0.
Scores are scaled by 1/sqrt(head_dim), and the mask is plainly causal: as in the released models,
attention crosses the ends of documents. There are three implementations:

- On CUDA devices with Triton, queries and keys are rotated in place (kernels.rotary). Attention
  then reads strided views, with the backend that attention_backends selects for the head dim.
- On CPUs, sequences of at most 512 tokens use batched matrix products with a softmax in C, and the
  probabilities are saved for the backward. At 128 tokens, torch 2.13's flash kernels are 3 times
  slower in fp32 and 10 times in bf16. Without a C compiler, the softmax runs in torch, and only in
  bf16, because in fp32 the flash kernels are then faster. Without gradients, fp32 has one function
  in C for the whole of attention.
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
from pythia_core.kernels.rotary import rotary_reference, rotate_, split_rotated

MAX_SHORT_SEQ = 512
"""Longest row, in tokens, for which saving the batch * heads * row^2 probabilities is cheap."""


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


# The steps of _ShortAttention between its products, in C if a compiler is found, else in torch.


def _pack_rotated(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Copy qkv into one tensor in which q, k and v are separate, and rotate q and k there.

    Args:
        qkv: (batch, seq, heads, 3, dim).

    Returns:
        The rotated q, the rotated k, and v, in one tensor (3, batch * heads, seq, dim).
    """
    batch, seq, heads, _, dim = qkv.shape
    if native.available(qkv):
        pack = native.function("pack_rotated", qkv.dtype)
        packed = qkv.new_empty(3, batch, heads, seq, dim)
        pack(qkv.contiguous(), packed, cos, sin, batch, seq, heads, dim, cos.shape[-1])
    else:
        packed = qkv.permute(3, 0, 2, 1, 4).contiguous()
        packed[:2] = rotary_reference(packed[:2], cos, sin)
    return packed.flatten(1, 2)


def _unpack_rotated(packed: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute the backward pass of `_pack_rotated`.

    The gradients of q and k are rotated back, and all gradients get the layout of qkv.

    Args:
        packed: gradients of q, k and v, (3, batch * heads, seq, dim); may be overwritten.

    Returns:
        The gradient of qkv, (batch, seq, heads, 3, dim).
    """
    _, rows, seq, dim = packed.shape
    if native.available(packed):
        unpack = native.function("unpack_rotated", packed.dtype)
        qkv = packed.new_empty(rows // heads, seq, heads, 3, dim)
        unpack(packed, qkv, cos, sin, rows // heads, seq, heads, dim, cos.shape[-1])
        return qkv
    packed[:2] = rotary_reference(packed[:2], cos, -sin)
    return packed.unflatten(1, (-1, heads)).permute(1, 3, 2, 0, 4).contiguous()


def _causal_softmax_(scores: Tensor, scale: float) -> Tensor:
    """Return the causal softmax of scale * scores, (n, seq, seq). The scores are overwritten."""
    n, seq, _ = scores.shape
    if native.available(scores):
        softmax = native.function("causal_softmax", scores.dtype)
        softmax(scores, scale, n, seq)
        return scores
    future = torch.ones(seq, seq, dtype=torch.bool, device=scores.device).triu(1)
    return torch.softmax(scores.mul_(scale).masked_fill_(future, float("-inf")), -1)


def _causal_softmax_backward_(probabilities: Tensor, grad: Tensor, scale: float) -> Tensor:
    """Return the gradient of the scores that `_causal_softmax_` was given, (n, seq, seq).

    Args:
        probabilities: result of `_causal_softmax_`.
        grad: gradient of the probabilities; may be overwritten.
    """
    n, seq, _ = grad.shape
    if native.available(grad):
        backward = native.function("causal_softmax_backward", grad.dtype)
        backward(probabilities, grad, scale, n, seq)
        return grad
    return torch._softmax_backward_data(grad, probabilities, -1, grad.dtype).mul_(scale)


class _ShortAttention(torch.autograd.Function):
    """An autograd function for attention on short rows, by batched matrix products.

    The forward saves the probabilities for the backward. Queries, keys and values are in one buffer
    (3, batch * heads, seq, head_dim), and their gradients are in another buffer of this shape.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, seq, heads, _, dim = qkv.shape
        packed = _pack_rotated(qkv, cos, sin)
        q, k, v = packed
        probabilities = _causal_softmax_(torch.bmm(q, k.transpose(1, 2)), dim**-0.5)
        ctx.save_for_backward(packed, probabilities, cos, sin)
        ctx.heads = heads
        out = torch.bmm(probabilities, v)
        return out.view(batch, heads, seq, dim).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None]:
        packed, probabilities, cos, sin = ctx.saved_tensors
        _, rows, seq, dim = packed.shape
        q, k, v = packed
        dout = dout.view(-1, seq, ctx.heads, dim).transpose(1, 2).reshape(rows, seq, dim)
        grads = torch.empty_like(packed)
        torch.bmm(probabilities.transpose(1, 2), dout, out=grads[2])
        dscores = torch.bmm(dout, v.transpose(1, 2))
        dscores = _causal_softmax_backward_(probabilities, dscores, dim**-0.5)
        torch.bmm(dscores, k, out=grads[0])
        torch.bmm(dscores.transpose(1, 2), q, out=grads[1])
        return _unpack_rotated(grads, ctx.heads, cos, sin), None, None


def _attention_without_gradients(qkv: Tensor, cos: Tensor, sin: Tensor, ends: Tensor) -> Tensor:
    """Compute the result of `tree_attention` with one function of native.c, in fp32.

    Args:
        cos, sin, ends: as for `tree_attention`, or without the dimension `batch` if all rows have
            the same.
    """
    batch, seq, heads, _, dim = qkv.shape
    out = qkv.new_empty(batch, seq, heads * dim)
    native.function("tree_attention", qkv.dtype)(
        qkv.contiguous(), out, cos, sin, ends, dim**-0.5, int(ends.dim() == 2), batch, seq, heads,
        dim, cos.shape[-1],
    )  # fmt: skip
    return out


def tree_attention(qkv: Tensor, cos: Tensor, sin: Tensor, ends: Tensor) -> Tensor:
    """Compute attention in rows that hold several texts, with their common beginnings only once.

    A row is a tree of tokens in depth-first order. A token attends to its ancestors and itself.
    There are no gradients.

    Args:
        qkv: (batch, seq, heads, 3, head_dim), with queries and keys that are not yet rotated.
        cos, sin: cosines and sines of the rotary angles, each (batch, seq, rotary_dims / 2), fp32.
        ends: one past the last descendant of every token, (batch, seq) int64.

    Returns:
        The output of attention, (batch, seq, heads * head_dim).
    """
    if _is_short(qkv) and qkv.dtype == torch.float32 and native.available(qkv):
        return _attention_without_gradients(qkv, cos, sin, ends)
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
    q, k = (rotary_reference(x, cos[:, None], sin[:, None]) for x in (q, k))
    token = torch.arange(qkv.shape[1], device=qkv.device)
    mask = (token <= token[:, None]) & (token[:, None] < ends[:, None])  # (batch, seq, seq)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
    return out.transpose(1, 2).flatten(2)


def _is_short(qkv: Tensor) -> bool:
    """Return whether qkv is on a CPU, and its rows are short enough for batched products."""
    return qkv.device.type == "cpu" and qkv.shape[1] <= MAX_SHORT_SEQ


# On CUDA devices.


class _PackedAttention(torch.autograd.Function):
    """An autograd function for our Triton attention on a packed qkv.

    The forward rotates the queries and keys of qkv in place. The backward rotates the gradients of
    the queries and keys back. `kernels.rotary._SplitRotated` explains how autograd copes with the
    change in place.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rotate_(qkv, cos, sin, False)
        out, lse = packed_forward(*qkv.unbind(3))
        ctx.save_for_backward(qkv, out, lse, cos, sin)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None, None]:
        qkv, out, lse, cos, sin = ctx.saved_tensors
        dqkv = packed_backward(dout, *qkv.unbind(3), out, lse)
        rotate_(dqkv, cos, sin, True)
        return dqkv, None, None


def attention_with_backend(qkv: Tensor, cos: Tensor, sin: Tensor, backend: str) -> Tensor:
    """Compute the result of `attention` with a given backend, on a CUDA device with Triton.

    Args:
        backend: one of `attention_backends.BACKENDS`.

    Raises:
        ConfigError: the backend is unknown, unavailable, or cannot take these tensors.
    """
    if backend != "triton":
        q, k, v = split_rotated(qkv, cos, sin)
        return backend_attention(q, k, v, backend).flatten(2)
    check_packed(qkv[:, :, :, 0])
    qkv = qkv if torch.is_grad_enabled() else qkv.clone()  # see split_rotated
    return _PackedAttention.apply(qkv, cos, sin).flatten(2)


def attention(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute causal attention with rotary embedding, in the fastest way on this device.

    On a CUDA device with Triton, `qkv` may be overwritten (see `kernels.rotary.split_rotated`).

    Args:
        qkv: (batch, seq, heads, 3, head_dim), with queries and keys that are not yet rotated.
        cos, sin: cosines and sines of the rotary angles, each (seq, rotary_dims / 2), fp32.

    Returns:
        The output of attention, (batch, seq, heads * head_dim).
    """
    device, dtype, head_dim = qkv.device, qkv.dtype, qkv.shape[-1]
    if dispatch.use_triton(qkv) and dispatch.is_supported("rotation", device, dtype, head_dim):
        return attention_with_backend(qkv, cos, sin, select_backend(head_dim, dtype, device))
    if _is_short(qkv) and (dtype == torch.bfloat16 or native.available(qkv)):
        if dtype == torch.float32 and not torch.is_grad_enabled():
            ends = torch.full(qkv.shape[1:2], qkv.shape[1])
            return _attention_without_gradients(qkv, cos, sin, ends)
        return _ShortAttention.apply(qkv, cos, sin)
    return attention_torch(qkv, cos, sin)
