"""Causal flash attention on strided views of the packed QKV: the forward.

As in FlashAttention-2 (Dao 2023): a program keeps a tile of queries of one head, walks the keys
before it with a running maximum, and leaves the output and, in fp32 and to base 2, the logarithm of
the sum of exponentials. Scores are never written to memory. The backward is in
attention_triton_backward, the sizes of tiles in attention_tiles. Speed: not yet measured.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pythia_core.kernels.attention_rows import head_of, load_rows, same_strides, store_rows
from pythia_core.kernels.attention_tiles import constants, tiles


@triton.jit
def _forward_tiles(
    out1, out2, total, top, q1, q2, k_ptr, v_ptr, query, seq, stride_seq, scale, start, end,
    DIAGONAL: tl.constexpr, DIM: tl.constexpr, LANES1: tl.constexpr, LANES2: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for first in range(start, end, KEYS):
        key = first + tl.arange(0, KEYS)
        at = key * stride_seq
        inside = key < seq
        k1 = load_rows(k_ptr, at, inside, 0, LANES1, DIM)
        scores = tl.dot(q1, k1.T, input_precision=PRECISION)
        if LANES2 > 0:
            k2 = load_rows(k_ptr, at, inside, LANES1, LANES2, DIM)
            scores = tl.dot(q2, k2.T, scores, input_precision=PRECISION)
        if DIAGONAL:
            scores = tl.where(query[:, None] >= key[None, :], scores, float("-inf"))
        new = tl.maximum(top, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - new[:, None])
        shrink = tl.exp2(top - new)
        total = total * shrink + tl.sum(p, 1)
        top = new
        p = p.to(k_ptr.dtype.element_ty)
        v1 = load_rows(v_ptr, at, inside, 0, LANES1, DIM)
        out1 = tl.dot(p, v1, out1 * shrink[:, None], input_precision=PRECISION)
        if LANES2 > 0:
            v2 = load_rows(v_ptr, at, inside, LANES1, LANES2, DIM)
            out2 = tl.dot(p, v2, out2 * shrink[:, None], input_precision=PRECISION)
    return out1, out2, total, top


@triton.jit
def forward_kernel(
    q_ptr,  # q, k, v: (batch, seq, heads, head_dim), of the same strides, the last 1
    k_ptr,
    v_ptr,
    out_ptr,  # (batch, seq, heads, head_dim), contiguous
    lse_ptr,  # (batch, heads, seq) fp32: log2 of the sum of exp of the scaled scores
    seq,
    heads,
    stride_batch,
    stride_seq,
    stride_head,
    scale,  # log2(e) / sqrt(head_dim)
    DIM: tl.constexpr,
    LANES1: tl.constexpr,
    LANES2: tl.constexpr,  # 0: the head is one run of lanes
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,  # divides QUERIES
    PRECISION: tl.constexpr,
):
    """A tile of queries of one head; the last tiles, which have most to do, come first."""
    n_tiles = tl.cdiv(seq, QUERIES)
    which = tl.program_id(0) // n_tiles
    first = (n_tiles - 1 - tl.program_id(0) % n_tiles) * QUERIES
    batch, head, base = head_of(which, heads, stride_batch, stride_head)
    q_ptr += base
    k_ptr += base
    v_ptr += base
    query = first + tl.arange(0, QUERIES)
    inside = query < seq
    q1 = load_rows(q_ptr, query * stride_seq, inside, 0, LANES1, DIM)
    out1 = tl.zeros((QUERIES, LANES1), tl.float32)
    q2, out2 = q1, out1
    if LANES2 > 0:
        q2 = load_rows(q_ptr, query * stride_seq, inside, LANES1, LANES2, DIM)
        out2 = tl.zeros((QUERIES, LANES2), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    out1, out2, total, top = _forward_tiles(
        out1, out2, total, top, q1, q2, k_ptr, v_ptr, query, seq, stride_seq, scale, 0, first,
        False, DIM, LANES1, LANES2, KEYS, PRECISION,
    )  # fmt: skip
    out1, out2, total, top = _forward_tiles(
        out1, out2, total, top, q1, q2, k_ptr, v_ptr, query, seq, stride_seq, scale, first,
        tl.minimum(first + QUERIES, seq), True, DIM, LANES1, LANES2, KEYS, PRECISION,
    )  # fmt: skip
    tl.store(lse_ptr + which.to(tl.int64) * seq + query, top + tl.log2(total), mask=inside)
    out_ptr += batch * seq * heads * DIM + head * DIM
    at = query * (heads * DIM)
    inverse = 1.0 / total
    store_rows(out_ptr, at, inside, 0, out1 * inverse[:, None], LANES1, DIM)
    if LANES2 > 0:
        store_rows(out_ptr, at, inside, LANES1, out2 * inverse[:, None], LANES2, DIM)


def attention_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """out (batch, seq, heads, head_dim), and the base-2 log-sum-exp (batch, heads, seq) in fp32.

    Args:
        q, k, v: (batch, seq, heads, head_dim); of the same strides, or they are copied.
    """
    q, k, v = same_strides(q, k, v)
    batch, seq, heads, dim = q.shape
    out = q.new_empty(q.shape)
    lse = q.new_empty(batch, heads, seq, dtype=torch.float32)
    tile = tiles(dim, q.dtype).forward
    if q.numel():
        forward_kernel[(batch * heads * triton.cdiv(seq, tile.queries),)](
            q, k, v, out, lse, seq, heads, *q.stride()[:3], math.log2(math.e) / dim**0.5,
            **constants(dim, q.dtype), QUERIES=tile.queries, KEYS=tile.keys,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out, lse
