"""What both directions of the Triton attention share: rows of a head found, read and written.

Imported by them only, and so, as they are, when a card first needs it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def head_of(which, heads, stride_batch, stride_head):
    """Batch and head of the `which`-th of all heads, and where its first row begins."""
    batch, head = (which // heads).to(tl.int64), which % heads
    return batch, head, batch * stride_batch + head * stride_head


@triton.jit
def load_rows(ptr, offsets, inside, lane_start, LANES: tl.constexpr, DIM: tl.constexpr):
    """Rows of LANES lanes from `lane_start`; nothing outside the head or the sequence is read."""
    lane = lane_start + tl.arange(0, LANES)
    mask = inside[:, None]
    if DIM < lane_start + LANES:
        mask = mask & (lane < DIM)[None, :]
    return tl.load(ptr + offsets[:, None] + lane[None, :], mask=mask, other=0.0)


@triton.jit
def store_rows(ptr, offsets, inside, lane_start, x, LANES: tl.constexpr, DIM: tl.constexpr):
    lane = lane_start + tl.arange(0, LANES)
    mask = inside[:, None]
    if DIM < lane_start + LANES:
        mask = mask & (lane < DIM)[None, :]
    tl.store(ptr + offsets[:, None] + lane[None, :], x.to(ptr.dtype.element_ty), mask=mask)


def same_strides(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """q, k and v as the kernels want them: views of one packed buffer are, others are copied."""
    if q.stride() == k.stride() == v.stride() and q.stride(-1) == 1:
        return [q, k, v]
    return [x.contiguous() for x in (q, k, v)]
