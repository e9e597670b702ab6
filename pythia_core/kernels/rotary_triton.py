"""Triton kernels for the rotary embedding on the packed QKV.

The forward rotates queries and keys in place, and touches only rotated lanes: in Pythia, a sixth of
the buffer. The backward rotates the gradients back and writes one packed gradient, and the sums of
its columns, which are the gradient of the projection's bias. Rotations are computed in fp32, and
rounded once. The number of partial sums, PARTIALS, is fixed, so the device does not change results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 4
PARTIALS = 128


def tile(half: int) -> tuple[int, int]:
    """Return how many rows and lanes a program handles (about eight elements per thread)."""
    lanes = triton.next_power_of_2(max(half, 1))
    return max(1, 32 * WARPS * 8 // lanes), lanes


@triton.jit
def _rotated(first, second, cos, sin, BACK: tl.constexpr):
    """Rotate pairs of lanes by the rotary angles, or by the negative angles if BACK."""
    if BACK:
        return first * cos + second * sin, second * cos - first * sin
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def rotate_kernel(
    qkv_ptr,  # (batch, seq, heads, 3, head_dim), the last stride 1
    cos_ptr,  # (seq, HALF) fp32
    sin_ptr,  # (seq, HALF) fp32
    n_rows,  # batch * seq * heads * 2
    seq,
    heads,
    stride_batch,
    stride_seq,
    stride_head,
    stride_part,
    BACK: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,  # HALF up to a power of two
    ROWS: tl.constexpr,
):
    """Rotate ROWS rows in place. A row is the rotated part of one head's query or key."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)
    mask = (row < n_rows)[:, None] & (lane < HALF)[None, :]
    part = row % 2
    head = row // 2 % heads
    token = row // (2 * heads)
    position = token % seq
    start = (token // seq).to(tl.int64) * stride_batch + position.to(tl.int64) * stride_seq
    start += head * stride_head + part * stride_part
    first_ptr = qkv_ptr + start[:, None] + lane[None, :]
    table = position[:, None] * HALF + lane[None, :]
    cos = tl.load(cos_ptr + table, mask=mask, other=0.0)
    sin = tl.load(sin_ptr + table, mask=mask, other=0.0)
    first = tl.load(first_ptr, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(first_ptr + HALF, mask=mask, other=0.0).to(tl.float32)
    first, second = _rotated(first, second, cos, sin, BACK)
    tl.store(first_ptr, first.to(qkv_ptr.dtype.element_ty), mask=mask)
    tl.store(first_ptr + HALF, second.to(qkv_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _copy(from_ptr, to_ptr, inside, WIDTH: tl.constexpr, LANES: tl.constexpr):
    """Copy WIDTH lanes of each row for which `inside` is true; return the sum of the rows."""
    lane = tl.arange(0, LANES)
    mask = inside[:, None] & (lane < WIDTH)[None, :]
    x = tl.load(from_ptr[:, None] + lane[None, :], mask=mask, other=0.0)
    tl.store(to_ptr[:, None] + lane[None, :], x, mask=mask)
    return tl.sum(x.to(tl.float32), 0)


@triton.jit
def _copy_rotated_back(
    from_ptr, to_ptr, cos, sin, mask, inside, first_sum, second_sum, rest_sum,
    HALF: tl.constexpr, LANES: tl.constexpr, REST: tl.constexpr, REST_LANES: tl.constexpr,
):  # fmt: skip
    """Copy rows of a gradient, with the first 2 * HALF lanes rotated back; update their sums."""
    if HALF > 0:
        lane = tl.arange(0, LANES)
        first_ptr = from_ptr[:, None] + lane[None, :]
        first = tl.load(first_ptr, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(first_ptr + HALF, mask=mask, other=0.0).to(tl.float32)
        first, second = _rotated(first, second, cos, sin, True)
        out_ptr = to_ptr[:, None] + lane[None, :]
        tl.store(out_ptr, first.to(to_ptr.dtype.element_ty), mask=mask)
        tl.store(out_ptr + HALF, second.to(to_ptr.dtype.element_ty), mask=mask)
        first_sum += tl.sum(first, 0)
        second_sum += tl.sum(second, 0)
    if REST > 0:
        rest_sum += _copy(from_ptr + 2 * HALF, to_ptr + 2 * HALF, inside, REST, REST_LANES)
    return first_sum, second_sum, rest_sum


@triton.jit
def _write_sums(
    to_ptr, first_sum, second_sum, rest_sum, HALF: tl.constexpr, LANES: tl.constexpr,
    REST: tl.constexpr, REST_LANES: tl.constexpr,
):  # fmt: skip
    """Write the column sums of one head's queries or keys."""
    if HALF > 0:
        lane = tl.arange(0, LANES)
        tl.store(to_ptr + lane, first_sum, mask=lane < HALF)
        tl.store(to_ptr + HALF + lane, second_sum, mask=lane < HALF)
    if REST > 0:
        lane = tl.arange(0, REST_LANES)
        tl.store(to_ptr + 2 * HALF + lane, rest_sum, mask=lane < REST)


@triton.jit
def pack_kernel(
    dq_ptr,  # dq, dk, dv: (batch, seq, heads, head_dim), the last stride 1
    dk_ptr,
    dv_ptr,
    out_ptr,  # (batch, seq, heads, 3, head_dim), contiguous
    cos_ptr,  # (seq, HALF) fp32
    sin_ptr,  # (seq, HALF) fp32
    partial_ptr,  # (PARTIALS, heads, 3, head_dim) fp32: column sums of `out`
    n_tokens,  # batch * seq
    seq,
    heads,
    dq_batch, dq_seq, dq_head,
    dk_batch, dk_seq, dk_head,
    dv_batch, dv_seq, dv_head,
    DIM: tl.constexpr,
    DIM_LANES: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    REST: tl.constexpr,
    REST_LANES: tl.constexpr,
    ROWS: tl.constexpr,
    PARTIALS: tl.constexpr,
):  # fmt: skip
    """Rotate dq and dk back, and pack dq, dk and dv, for one head and every PARTIALS-th tile."""
    program, head = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, LANES)
    q_first = tl.zeros((LANES,), tl.float32)
    q_second, k_first, k_second = q_first, q_first, q_first
    q_rest = tl.zeros((REST_LANES,), tl.float32)
    k_rest = q_rest
    v_sum = tl.zeros((DIM_LANES,), tl.float32)
    for start in range(program * ROWS, n_tokens, PARTIALS * ROWS):
        token = start + tl.arange(0, ROWS)
        inside = token < n_tokens
        position = token % seq
        batch = (token // seq).to(tl.int64)
        at = position.to(tl.int64)
        mask = inside[:, None] & (lane < HALF)[None, :]
        table = position[:, None] * HALF + lane[None, :]
        cos = tl.load(cos_ptr + table, mask=mask, other=0.0)
        sin = tl.load(sin_ptr + table, mask=mask, other=0.0)
        out = out_ptr + (token.to(tl.int64) * heads + head) * (3 * DIM)
        dq = dq_ptr + batch * dq_batch + at * dq_seq + head * dq_head
        dk = dk_ptr + batch * dk_batch + at * dk_seq + head * dk_head
        dv = dv_ptr + batch * dv_batch + at * dv_seq + head * dv_head
        q_first, q_second, q_rest = _copy_rotated_back(
            dq, out, cos, sin, mask, inside, q_first, q_second, q_rest,
            HALF, LANES, REST, REST_LANES,
        )  # fmt: skip
        k_first, k_second, k_rest = _copy_rotated_back(
            dk, out + DIM, cos, sin, mask, inside, k_first, k_second, k_rest,
            HALF, LANES, REST, REST_LANES,
        )  # fmt: skip
        v_sum += _copy(dv, out + 2 * DIM, inside, DIM, DIM_LANES)
    sums = partial_ptr + (program * heads + head) * (3 * DIM)
    _write_sums(sums, q_first, q_second, q_rest, HALF, LANES, REST, REST_LANES)
    _write_sums(sums + DIM, k_first, k_second, k_rest, HALF, LANES, REST, REST_LANES)
    lanes = tl.arange(0, DIM_LANES)
    tl.store(sums + 2 * DIM + lanes, v_sum, mask=lanes < DIM)


def rotate_(qkv: Tensor, cos: Tensor, sin: Tensor, back: bool) -> None:
    """Rotate q and k of qkv (batch, seq, heads, 3, head_dim) in place.

    `cos` and `sin` are (seq, rotary_dims / 2), fp32, contiguous. With `back`, undo the rotation.
    """
    batch, seq, heads, _, _ = qkv.shape
    half = cos.shape[-1]
    assert qkv.stride(-1) == 1 and cos.is_contiguous() and sin.is_contiguous()
    assert cos.dtype == sin.dtype == torch.float32
    n_rows = batch * seq * heads * 2
    rows, lanes = tile(half)
    if n_rows and half:
        rotate_kernel[(triton.cdiv(n_rows, rows),)](
            qkv, cos, sin, n_rows, seq, heads, *qkv.stride()[:4],
            BACK=back, HALF=half, LANES=lanes, ROWS=rows, num_warps=WARPS,
        )  # fmt: skip


def pack_rotated_back(
    dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotate dq and dk back, and pack dq, dk and dv into one (batch, seq, heads, 3, head_dim).

    Returns:
        The packed gradient, and its sums over tokens, (heads * 3 * head_dim,) in fp32.
    """
    dq, dk, dv = (g if g.stride(-1) == 1 else g.contiguous() for g in (dq, dk, dv))
    batch, seq, heads, dim = dq.shape
    half = cos.shape[-1]
    rest = dim - 2 * half
    out = dq.new_empty(batch, seq, heads, 3, dim)
    partial = out.new_empty(PARTIALS, heads * 3 * dim, dtype=torch.float32)
    rows, lanes = tile(half)
    if heads:
        pack_kernel[(PARTIALS, heads)](
            dq, dk, dv, out, cos, sin, partial, batch * seq, seq, heads,
            *dq.stride()[:3], *dk.stride()[:3], *dv.stride()[:3],
            DIM=dim, DIM_LANES=triton.next_power_of_2(dim),
            HALF=half, LANES=lanes,
            REST=rest, REST_LANES=triton.next_power_of_2(max(rest, 1)),
            ROWS=rows, PARTIALS=PARTIALS, num_warps=WARPS,
        )  # fmt: skip
    return out, partial.sum(0)
