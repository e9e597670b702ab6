"""Triton kernels for causal flash attention on strided views of the packed QKV.

Forward, as in FlashAttention-2 (Dao 2023): a program holds a tile of queries of one head, and loops
over the keys with a running maximum. The program writes the output and the log-sum-exp (fp32, base
2), but never the scores.

Backward: two kernels recompute the probabilities from q, k and the log-sum-exp. One kernel computes
dk and dv for a tile of keys, the other dq for a tile of queries. This takes two more matrix
products than one kernel with atomic sums of dq, but results are bitwise repeatable. All gradients
go into one tensor (batch, seq, heads, 3, head_dim), as the backward of the QKV projection expects.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from pythia_core.kernels.attention_tiles import Tile, constants, tiles

# --- reading and writing rows ----------------------------------------------------------------


@triton.jit
def head_of(index, heads, stride_batch, stride_head):
    """Return batch, head and the head's offset in elements, from index = batch * heads + head."""
    batch, head = (index // heads).to(tl.int64), index % heads
    return batch, head, batch * stride_batch + head * stride_head


@triton.jit
def load_rows(ptr, offsets, inside, lane_start, LANES: tl.constexpr, DIM: tl.constexpr):
    """Load LANES lanes of rows at `offsets`. Lanes from DIM on, and rows not `inside`, become 0."""
    lane = lane_start + tl.arange(0, LANES)
    mask = inside[:, None]
    if DIM < lane_start + LANES:
        mask = mask & (lane < DIM)[None, :]
    return tl.load(ptr + offsets[:, None] + lane[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(ptr, offsets, inside, lane_start, x, LANES: tl.constexpr, DIM: tl.constexpr):
    """Store `x` in the rows at `offsets`. Skip lanes from DIM on, and rows not `inside`."""
    lane = lane_start + tl.arange(0, LANES)
    mask = inside[:, None]
    if DIM < lane_start + LANES:
        mask = mask & (lane < DIM)[None, :]
    tl.store(ptr + offsets[:, None] + lane[None, :], x.to(ptr.dtype.element_ty), mask=mask)


def same_strides(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """Return q, k and v with equal strides and a last stride of 1, copied only if necessary."""
    if q.stride() == k.stride() == v.stride() and q.stride(-1) == 1:
        return [q, k, v]
    return [x.contiguous() for x in (q, k, v)]


# --- forward ---------------------------------------------------------------------------------


@triton.jit
def _forward_tiles(
    out1, out2, row_sum, row_max, q1, q2, k_ptr, v_ptr, query, seq, stride_seq, scale, start, end,
    DIAGONAL: tl.constexpr, DIM: tl.constexpr, LANES1: tl.constexpr, LANES2: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the keys start, ..., end - 1 to the running output, sum and maximum of some queries."""
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
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
        p = tl.exp2(scores * scale - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(p, 1)
        row_max = new_max
        p = p.to(k_ptr.dtype.element_ty)
        v1 = load_rows(v_ptr, at, inside, 0, LANES1, DIM)
        out1 = tl.dot(p, v1, out1 * rescale[:, None], input_precision=PRECISION)
        if LANES2 > 0:
            v2 = load_rows(v_ptr, at, inside, LANES1, LANES2, DIM)
            out2 = tl.dot(p, v2, out2 * rescale[:, None], input_precision=PRECISION)
    return out1, out2, row_sum, row_max


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
    """Compute attention for a tile of queries. The last tiles, with the most work, start first."""
    n_tiles = tl.cdiv(seq, QUERIES)
    index = tl.program_id(0) // n_tiles
    first = (n_tiles - 1 - tl.program_id(0) % n_tiles) * QUERIES
    batch, head, base = head_of(index, heads, stride_batch, stride_head)
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
    row_sum = tl.zeros((QUERIES,), tl.float32)
    row_max = tl.full((QUERIES,), float("-inf"), tl.float32)
    out1, out2, row_sum, row_max = _forward_tiles(
        out1, out2, row_sum, row_max, q1, q2, k_ptr, v_ptr, query, seq, stride_seq, scale, 0, first,
        False, DIM, LANES1, LANES2, KEYS, PRECISION,
    )  # fmt: skip
    out1, out2, row_sum, row_max = _forward_tiles(
        out1, out2, row_sum, row_max, q1, q2, k_ptr, v_ptr, query, seq, stride_seq, scale, first,
        tl.minimum(first + QUERIES, seq), True, DIM, LANES1, LANES2, KEYS, PRECISION,
    )  # fmt: skip
    tl.store(lse_ptr + index.to(tl.int64) * seq + query, row_max + tl.log2(row_sum), mask=inside)
    out_ptr += batch * seq * heads * DIM + head * DIM
    at = query * (heads * DIM)
    inverse = 1.0 / row_sum
    store_rows(out_ptr, at, inside, 0, out1 * inverse[:, None], LANES1, DIM)
    if LANES2 > 0:
        store_rows(out_ptr, at, inside, LANES1, out2 * inverse[:, None], LANES2, DIM)


def attention_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Compute causal attention of q, k and v, each (batch, seq, heads, head_dim).

    Returns the output, and the base-2 log-sum-exp of each query's scaled scores, (batch, heads,
    seq) in fp32.
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


# --- backward --------------------------------------------------------------------------------


@triton.jit
def delta_kernel(
    out_ptr,  # out, dout: (batch, seq, heads, head_dim), contiguous
    dout_ptr,
    delta_ptr,  # (batch, heads, seq) fp32: sum of out * dout over a head
    n_rows,  # batch * seq * heads
    seq,
    heads,
    DIM: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Compute delta, the sum of out * dout over each head of a token, for the backward kernels."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < n_rows
    at = row.to(tl.int64) * DIM
    out = load_rows(out_ptr, at, inside, 0, LANES, DIM).to(tl.float32)
    dout = load_rows(dout_ptr, at, inside, 0, LANES, DIM).to(tl.float32)
    token, head = row // heads, row % heads
    delta_at = ((token // seq).to(tl.int64) * heads + head) * seq + token % seq
    tl.store(delta_ptr + delta_at, tl.sum(out * dout, 1), mask=inside)


@triton.jit
def _dkv_tiles(
    dk1, dk2, dv1, dv2, k1, k2, v1, v2, q_ptr, dout_ptr, lse_ptr, delta_ptr, key, seq, stride_seq,
    dout_seq, scale, start, end,
    DIAGONAL: tl.constexpr, DIM: tl.constexpr, LANES1: tl.constexpr, LANES2: tl.constexpr,
    QUERIES: tl.constexpr, PRECISION: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """Add the terms of the queries start, ..., end - 1 to dk (if DK) and dv (if DV)."""
    for first in range(start, end, QUERIES):
        query = first + tl.arange(0, QUERIES)
        inside = query < seq
        q1 = load_rows(q_ptr, query * stride_seq, inside, 0, LANES1, DIM)
        scores = tl.dot(k1, q1.T, input_precision=PRECISION)  # transposed: a row is a key
        if LANES2 > 0:
            q2 = load_rows(q_ptr, query * stride_seq, inside, LANES1, LANES2, DIM)
            scores = tl.dot(k2, q2.T, scores, input_precision=PRECISION)
        lse = tl.load(lse_ptr + query, mask=inside, other=float("inf"))  # beyond the end: p = 0
        p = tl.exp2(scores * scale - lse[None, :])
        if DIAGONAL:
            p = tl.where(query[None, :] >= key[:, None], p, 0.0)
        dout1 = load_rows(dout_ptr, query * dout_seq, inside, 0, LANES1, DIM)
        if LANES2 > 0:
            dout2 = load_rows(dout_ptr, query * dout_seq, inside, LANES1, LANES2, DIM)
        if DV:
            p_low = p.to(q_ptr.dtype.element_ty)
            dv1 = tl.dot(p_low, dout1, dv1, input_precision=PRECISION)
            if LANES2 > 0:
                dv2 = tl.dot(p_low, dout2, dv2, input_precision=PRECISION)
        if DK:
            dp = tl.dot(v1, dout1.T, input_precision=PRECISION)
            if LANES2 > 0:
                dp = tl.dot(v2, dout2.T, dp, input_precision=PRECISION)
            delta = tl.load(delta_ptr + query, mask=inside, other=0.0)
            dscores = (p * (dp - delta[None, :])).to(q_ptr.dtype.element_ty)
            dk1 = tl.dot(dscores, q1, dk1, input_precision=PRECISION)
            if LANES2 > 0:
                dk2 = tl.dot(dscores, q2, dk2, input_precision=PRECISION)
    return dk1, dk2, dv1, dv2


@triton.jit
def dkv_kernel(
    q_ptr,  # q, k, v as in the forward
    k_ptr,
    v_ptr,
    dout_ptr,  # (batch, seq, heads, head_dim), contiguous
    lse_ptr,  # (batch, heads, seq) fp32, like delta
    delta_ptr,
    dqkv_ptr,  # (batch, seq, heads, 3, head_dim), contiguous
    seq,
    heads,
    stride_batch,
    stride_seq,
    stride_head,
    scale,
    DIM: tl.constexpr,
    LANES1: tl.constexpr,
    LANES2: tl.constexpr,
    QUERIES: tl.constexpr,  # divides KEYS
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    DK: tl.constexpr,  # whether this launch writes dk
    DV: tl.constexpr,
):
    """Compute dk (with DK) and dv (with DV) for a tile of keys of one head."""
    n_tiles = tl.cdiv(seq, KEYS)
    index = tl.program_id(0) // n_tiles
    first = tl.program_id(0) % n_tiles * KEYS
    batch, head, base = head_of(index, heads, stride_batch, stride_head)
    q_ptr += base
    dout_ptr += batch * seq * heads * DIM + head * DIM
    lse_ptr += index.to(tl.int64) * seq
    delta_ptr += index.to(tl.int64) * seq
    key = first + tl.arange(0, KEYS)
    inside = key < seq
    at = key * stride_seq
    k1 = load_rows(k_ptr + base, at, inside, 0, LANES1, DIM)
    v1 = load_rows(v_ptr + base, at, inside, 0, LANES1, DIM)
    dk1 = tl.zeros((KEYS, LANES1), tl.float32)
    dv1 = tl.zeros((KEYS, LANES1), tl.float32)
    k2, v2, dk2, dv2 = k1, v1, dk1, dv1
    if LANES2 > 0:
        k2 = load_rows(k_ptr + base, at, inside, LANES1, LANES2, DIM)
        v2 = load_rows(v_ptr + base, at, inside, LANES1, LANES2, DIM)
        dk2 = tl.zeros((KEYS, LANES2), tl.float32)
        dv2 = tl.zeros((KEYS, LANES2), tl.float32)
    dk1, dk2, dv1, dv2 = _dkv_tiles(
        dk1, dk2, dv1, dv2, k1, k2, v1, v2, q_ptr, dout_ptr, lse_ptr, delta_ptr, key, seq,
        stride_seq, heads * DIM, scale, first, tl.minimum(first + KEYS, seq),
        True, DIM, LANES1, LANES2, QUERIES, PRECISION, DK, DV,
    )  # fmt: skip
    dk1, dk2, dv1, dv2 = _dkv_tiles(
        dk1, dk2, dv1, dv2, k1, k2, v1, v2, q_ptr, dout_ptr, lse_ptr, delta_ptr, key, seq,
        stride_seq, heads * DIM, scale, first + KEYS, seq,
        False, DIM, LANES1, LANES2, QUERIES, PRECISION, DK, DV,
    )  # fmt: skip
    grad_scale = scale * 0.6931471805599453  # 1 / sqrt(head_dim)
    dqkv_ptr += batch * seq * heads * 3 * DIM + head * 3 * DIM
    at = key * (heads * 3 * DIM)
    if DK:
        store_rows(dqkv_ptr + DIM, at, inside, 0, dk1 * grad_scale, LANES1, DIM)
        if LANES2 > 0:
            store_rows(dqkv_ptr + DIM, at, inside, LANES1, dk2 * grad_scale, LANES2, DIM)
    if DV:
        store_rows(dqkv_ptr + 2 * DIM, at, inside, 0, dv1, LANES1, DIM)
        if LANES2 > 0:
            store_rows(dqkv_ptr + 2 * DIM, at, inside, LANES1, dv2, LANES2, DIM)


@triton.jit
def _dq_tiles(
    dq1, dq2, q1, q2, dout1, dout2, lse, delta, k_ptr, v_ptr, query, seq, stride_seq, scale, start,
    end, DIAGONAL: tl.constexpr, DIM: tl.constexpr, LANES1: tl.constexpr, LANES2: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the terms of the keys start, ..., end - 1 to dq."""
    for first in range(start, end, KEYS):
        key = first + tl.arange(0, KEYS)
        at = key * stride_seq
        inside = key < seq
        k1 = load_rows(k_ptr, at, inside, 0, LANES1, DIM)
        v1 = load_rows(v_ptr, at, inside, 0, LANES1, DIM)
        scores = tl.dot(q1, k1.T, input_precision=PRECISION)
        dp = tl.dot(dout1, v1.T, input_precision=PRECISION)
        if LANES2 > 0:
            k2 = load_rows(k_ptr, at, inside, LANES1, LANES2, DIM)
            v2 = load_rows(v_ptr, at, inside, LANES1, LANES2, DIM)
            scores = tl.dot(q2, k2.T, scores, input_precision=PRECISION)
            dp = tl.dot(dout2, v2.T, dp, input_precision=PRECISION)
        p = tl.exp2(scores * scale - lse[:, None])
        if DIAGONAL:
            p = tl.where(query[:, None] >= key[None, :], p, 0.0)
        dscores = (p * (dp - delta[:, None])).to(k_ptr.dtype.element_ty)
        dq1 = tl.dot(dscores, k1, dq1, input_precision=PRECISION)
        if LANES2 > 0:
            dq2 = tl.dot(dscores, k2, dq2, input_precision=PRECISION)
    return dq1, dq2


@triton.jit
def dq_kernel(
    q_ptr,  # as in dkv_kernel
    k_ptr,
    v_ptr,
    dout_ptr,
    lse_ptr,
    delta_ptr,
    dqkv_ptr,
    seq,
    heads,
    stride_batch,
    stride_seq,
    stride_head,
    scale,
    DIM: tl.constexpr,
    LANES1: tl.constexpr,
    LANES2: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,  # divides QUERIES
    PRECISION: tl.constexpr,
):
    """Compute dq for a tile of queries of one head."""
    n_tiles = tl.cdiv(seq, QUERIES)
    index = tl.program_id(0) // n_tiles
    first = (n_tiles - 1 - tl.program_id(0) % n_tiles) * QUERIES
    batch, head, base = head_of(index, heads, stride_batch, stride_head)
    k_ptr += base
    v_ptr += base
    dout_ptr += batch * seq * heads * DIM + head * DIM
    query = first + tl.arange(0, QUERIES)
    inside = query < seq
    at = query * stride_seq
    dout_at = query * (heads * DIM)
    q1 = load_rows(q_ptr + base, at, inside, 0, LANES1, DIM)
    dout1 = load_rows(dout_ptr, dout_at, inside, 0, LANES1, DIM)
    dq1 = tl.zeros((QUERIES, LANES1), tl.float32)
    q2, dout2, dq2 = q1, dout1, dq1
    if LANES2 > 0:
        q2 = load_rows(q_ptr + base, at, inside, LANES1, LANES2, DIM)
        dout2 = load_rows(dout_ptr, dout_at, inside, LANES1, LANES2, DIM)
        dq2 = tl.zeros((QUERIES, LANES2), tl.float32)
    row = index.to(tl.int64) * seq + query
    lse = tl.load(lse_ptr + row, mask=inside, other=float("inf"))
    delta = tl.load(delta_ptr + row, mask=inside, other=0.0)
    dq1, dq2 = _dq_tiles(
        dq1, dq2, q1, q2, dout1, dout2, lse, delta, k_ptr, v_ptr, query, seq, stride_seq, scale,
        0, first, False, DIM, LANES1, LANES2, KEYS, PRECISION,
    )  # fmt: skip
    dq1, dq2 = _dq_tiles(
        dq1, dq2, q1, q2, dout1, dout2, lse, delta, k_ptr, v_ptr, query, seq, stride_seq, scale,
        first, tl.minimum(first + QUERIES, seq), True, DIM, LANES1, LANES2, KEYS, PRECISION,
    )  # fmt: skip
    grad_scale = scale * 0.6931471805599453  # 1 / sqrt(head_dim)
    dqkv_ptr += batch * seq * heads * 3 * DIM + head * 3 * DIM
    at = query * (heads * 3 * DIM)
    store_rows(dqkv_ptr, at, inside, 0, dq1 * grad_scale, LANES1, DIM)
    if LANES2 > 0:
        store_rows(dqkv_ptr, at, inside, LANES1, dq2 * grad_scale, LANES2, DIM)


def attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> Tensor:
    """Return the gradients of q, k and v, packed into one tensor (batch, seq, heads, 3, head_dim).

    `dout` is the gradient of `out`; `out` and `lse` are the results of `attention_forward`.
    """
    q, k, v = same_strides(q, k, v)
    batch, seq, heads, dim = q.shape
    dqkv = q.new_empty(batch, seq, heads, 3, dim)
    if not q.numel():
        return dqkv
    dout, delta = dout.contiguous(), torch.empty_like(lse)
    n_rows, width = batch * seq * heads, triton.next_power_of_2(dim)
    rows = max(1, 4096 // width)
    delta_kernel[(triton.cdiv(n_rows, rows),)](
        out, dout, delta, n_rows, seq, heads, DIM=dim, LANES=width, ROWS=rows, num_warps=4
    )
    sizes = tiles(dim, q.dtype)

    def launch(kernel: triton.JITFunction, tile: Tile, rows: int, **more: bool) -> None:
        """Run a kernel with one program for every `rows` tokens of every head."""
        kernel[(batch * heads * triton.cdiv(seq, rows),)](
            q, k, v, dout, lse, delta, dqkv, seq, heads, *q.stride()[:3],
            math.log2(math.e) / dim**0.5, **constants(dim, q.dtype), **more,
            QUERIES=tile.queries, KEYS=tile.keys, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    launch(dkv_kernel, sizes.dk, sizes.dk.keys, DK=True, DV=sizes.dv is None)
    if sizes.dv:
        launch(dkv_kernel, sizes.dv, sizes.dv.keys, DK=False, DV=True)
    launch(dq_kernel, sizes.dq, sizes.dq.queries)
    return dqkv
