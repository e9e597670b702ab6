"""Triton kernels for the two LayerNorms of a parallel block.

The forward kernel also adds the branches of the previous block to the residual stream. Statistics
are computed in fp32: first the mean, then the mean of centered squares.

The backward kernel rounds a product before adding to it (no fused multiply-add), because with
recomputation, torch adds the gradient of the sum outside the kernel, and the results with and
without recomputation must be bitwise equal.

Each program of the backward kernel sums the parameter gradients of many rows in registers. The
number of programs, PARTIALS, is fixed, so results do not depend on the device. The length of a
Triton vector is a power of two. So a row of 5,120 elements (Pythia-12B) is split into vectors of
4,096 and 1,024: sums padded to 8,192 would not fit in the registers of sm_90.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

PARTIALS = 256


def tile(d: int) -> tuple[int, int, int]:
    """Return the rows, lanes and warps of a program with 2,048 elements, or with one longer row."""
    lanes = triton.next_power_of_2(d)
    rows = max(1, 2048 // lanes)
    return rows, lanes, max(4, min(16, rows * lanes // 512))


def backward_tile(d: int) -> tuple[int, int, int, int]:
    """Return a backward program's rows, the lanes of a row's two vectors, and the warps.

    Each number of lanes is a power of two; the second is 0 if a row needs only one vector.
    """
    first = 1 << (d.bit_length() - 1)
    second = triton.next_power_of_2(d - first) if d > first else 0
    rows = tile(d)[0]
    return rows, first, second, max(4, rows * first // 512)


@triton.jit
def pair_kernel(
    x_ptr,  # (n, d), contiguous like all matrices here
    a_ptr,  # (n, d), read if RESIDUAL
    b_ptr,  # (n, d), read if RESIDUAL
    weight1_ptr,  # (d,), like the three others
    bias1_ptr,
    weight2_ptr,
    bias2_ptr,
    z_ptr,  # (n, d), x + (a + b) in the dtype of x, written if RESIDUAL
    y1_ptr,  # (n, d)
    y2_ptr,  # (n, d)
    mean_ptr,  # (n,) fp32
    rstd_ptr,  # (n,) fp32
    n,
    d,
    eps,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Compute y1 and y2, the LayerNorms of z, for ROWS rows; without RESIDUAL, z is x."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)
    mask = (row < n)[:, None] & (lane < d)[None, :]
    at = row.to(tl.int64)[:, None] * d + lane[None, :]
    z = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        a = tl.load(a_ptr + at, mask=mask, other=0.0).to(tl.float32)
        z += a + tl.load(b_ptr + at, mask=mask, other=0.0).to(tl.float32)
        rounded = z.to(z_ptr.dtype.element_ty)
        tl.store(z_ptr + at, rounded, mask=mask)
        z = rounded.to(tl.float32)  # the statistics use the values that the backward reads
    mean = tl.sum(z, 1) / d
    centered = tl.where(mask, z - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(centered * centered, 1) / d + eps)
    tl.store(mean_ptr + row, mean, mask=row < n)
    tl.store(rstd_ptr + row, rstd, mask=row < n)
    scaled = centered * rstd[:, None]
    inside = lane < d
    weight = tl.load(weight1_ptr + lane, mask=inside, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias1_ptr + lane, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(y1_ptr + at, (scaled * weight + bias).to(y1_ptr.dtype.element_ty), mask=mask)
    weight = tl.load(weight2_ptr + lane, mask=inside, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias2_ptr + lane, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(y2_ptr + at, (scaled * weight + bias).to(y2_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _read_part(
    z_ptr, dy1_ptr, dy2_ptr, weight1_ptr, weight2_ptr, mean, rstd, row, n, d, first,
    dweight1, dbias1, dweight2, dbias2, LANES: tl.constexpr,
):  # fmt: skip
    """Return normalized rows, the gradients of these rows, and updated parameter gradients."""
    lane = first + tl.arange(0, LANES)
    inside = lane < d
    mask = (row < n)[:, None] & inside[None, :]
    at = row.to(tl.int64)[:, None] * d + lane[None, :]
    z = tl.load(z_ptr + at, mask=mask, other=0.0).to(tl.float32)
    scaled = tl.where(mask, (z - mean[:, None]) * rstd[:, None], 0.0)
    dy = tl.load(dy1_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dweight1 += tl.sum(dy * scaled, 0)
    dbias1 += tl.sum(dy, 0)
    weight = tl.load(weight1_ptr + lane, mask=inside, other=0.0).to(tl.float32)
    g = dy * weight[None, :]
    dy = tl.load(dy2_ptr + at, mask=mask, other=0.0).to(tl.float32)
    dweight2 += tl.sum(dy * scaled, 0)
    dbias2 += tl.sum(dy, 0)
    weight = tl.load(weight2_ptr + lane, mask=inside, other=0.0).to(tl.float32)
    g += dy * weight[None, :]
    return scaled, g, dweight1, dbias1, dweight2, dbias2


@triton.jit
def _write_part(
    dz_ptr, dx_ptr, dbranch_ptr, scaled, g, g_mean, g_scaled_mean, rstd, row, n, d, first,
    RESIDUAL: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the gradients of x and of the branches for LANES lanes of the rows, from `first` on."""
    lane = first + tl.arange(0, LANES)
    mask = (row < n)[:, None] & (lane < d)[None, :]
    at = row.to(tl.int64)[:, None] * d + lane[None, :]
    dx = (g - g_mean[:, None] - scaled * g_scaled_mean[:, None]) * rstd[:, None]
    if RESIDUAL:
        dx += tl.load(dz_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dbranch_ptr + at, dx.to(dbranch_ptr.dtype.element_ty), mask=mask)
    tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _write_sums(partial_ptr, d, first, dweight1, dbias1, dweight2, dbias2, LANES: tl.constexpr):
    """Write a program's sums of the four parameter gradients, for LANES lanes from `first` on."""
    lane = first + tl.arange(0, LANES)
    tl.store(partial_ptr + lane, dweight1, mask=lane < d)
    tl.store(partial_ptr + d + lane, dbias1, mask=lane < d)
    tl.store(partial_ptr + 2 * d + lane, dweight2, mask=lane < d)
    tl.store(partial_ptr + 3 * d + lane, dbias2, mask=lane < d)


@triton.jit
def pair_backward_kernel(
    z_ptr,  # (n, d)
    dz_ptr,  # (n, d), in the dtype of z, read if RESIDUAL
    dy1_ptr,  # (n, d)
    dy2_ptr,  # (n, d)
    weight1_ptr,  # (d,)
    weight2_ptr,  # (d,)
    mean_ptr,  # (n,) fp32
    rstd_ptr,  # (n,) fp32
    dx_ptr,  # (n, d), in the dtype of z
    dbranch_ptr,  # (n, d): dx in the dtype of the branches, written if RESIDUAL
    partial_ptr,  # (PARTIALS, 4, d) fp32: gradients of weight1, bias1, weight2, bias2
    n,
    d,
    RESIDUAL: tl.constexpr,
    PARTIALS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES1: tl.constexpr,
    LANES2: tl.constexpr,  # 0: the row is one run of lanes
):
    """Compute the gradients of x and the branches, and partial sums of the parameter gradients."""
    program = tl.program_id(0)
    dweight1 = tl.zeros((LANES1,), tl.float32)
    dbias1, dweight2, dbias2 = dweight1, dweight1, dweight1
    if LANES2 > 0:
        more_dweight1 = tl.zeros((LANES2,), tl.float32)
        more_dbias1, more_dweight2, more_dbias2 = more_dweight1, more_dweight1, more_dweight1
    for start in range(program * ROWS, n, PARTIALS * ROWS):
        row = start + tl.arange(0, ROWS)
        mean = tl.load(mean_ptr + row, mask=row < n, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row < n, other=0.0)
        scaled, g, dweight1, dbias1, dweight2, dbias2 = _read_part(
            z_ptr, dy1_ptr, dy2_ptr, weight1_ptr, weight2_ptr, mean, rstd, row, n, d, 0,
            dweight1, dbias1, dweight2, dbias2, LANES1,
        )  # fmt: skip
        dot, total = tl.sum(g * scaled, 1), tl.sum(g, 1)
        if LANES2 > 0:
            more_scaled, more_g, more_dweight1, more_dbias1, more_dweight2, more_dbias2 = (
                _read_part(
                    z_ptr, dy1_ptr, dy2_ptr, weight1_ptr, weight2_ptr, mean, rstd, row, n, d,
                    LANES1, more_dweight1, more_dbias1, more_dweight2, more_dbias2, LANES2,
                )
            )  # fmt: skip
            dot += tl.sum(more_g * more_scaled, 1)
            total += tl.sum(more_g, 1)
        g_scaled_mean, g_mean = dot / d, total / d
        _write_part(
            dz_ptr, dx_ptr, dbranch_ptr, scaled, g, g_mean, g_scaled_mean, rstd, row, n, d, 0,
            RESIDUAL, LANES1,
        )  # fmt: skip
        if LANES2 > 0:
            _write_part(
                dz_ptr, dx_ptr, dbranch_ptr, more_scaled, more_g, g_mean, g_scaled_mean, rstd, row,
                n, d, LANES1, RESIDUAL, LANES2,
            )  # fmt: skip
    partial_ptr += program * 4 * d
    _write_sums(partial_ptr, d, 0, dweight1, dbias1, dweight2, dbias2, LANES1)
    if LANES2 > 0:
        _write_sums(
            partial_ptr, d, LANES1, more_dweight1, more_dbias1, more_dweight2, more_dbias2, LANES2
        )


def pair_forward(
    x: Tensor, branches: list[Tensor], norms: list[Tensor], eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the forward kernel on the arguments of `layer_norm.layer_norm_pair`.

    Returns:
        The sum (empty without branches), the results of the two LayerNorms, and the mean and the
        reciprocal standard deviation of each row.
    """
    x = x.contiguous()
    branches = [b.contiguous() for b in branches]
    n, d = x.shape
    rows, lanes, warps = tile(d)
    y1, y2 = x.new_empty(n, d, dtype=dtype), x.new_empty(n, d, dtype=dtype)
    z = x.new_empty((n, d) if branches else (0,))
    mean, rstd = (x.new_empty(n, dtype=torch.float32) for _ in range(2))
    if n:
        pair_kernel[(triton.cdiv(n, rows),)](
            x, *(branches or (x, x)), *norms, z, y1, y2, mean, rstd, n, d, eps,
            RESIDUAL=bool(branches), ROWS=rows, LANES=lanes, num_warps=warps,
        )  # fmt: skip
    return z, y1, y2, mean, rstd


def pair_backward(
    z: Tensor, dz: Tensor | None, dy1: Tensor, dy2: Tensor, weight1: Tensor, weight2: Tensor,
    mean: Tensor, rstd: Tensor, branch_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of `pair_forward`.

    Args:
        z: the tensor that was normalized: x plus the branches, if any.
        dz: gradient of the sum; None without branches.
        dy1, dy2: gradients of the results of the two LayerNorms.

    Returns:
        The gradient of x; the gradient of each branch in `branch_dtype` (empty without branches);
        the gradients of weight1, bias1, weight2 and bias2, (4, d) in fp32.
    """
    n, d = z.shape
    dy1, dy2 = dy1.contiguous(), dy2.contiguous()
    rows, first, second, warps = backward_tile(d)
    dx = torch.empty_like(z)
    dbranch = z.new_empty((0,) if dz is None else (n, d), dtype=branch_dtype)
    partial = z.new_empty(PARTIALS, 4, d, dtype=torch.float32)
    pair_backward_kernel[(PARTIALS,)](
        z, z if dz is None else dz.contiguous(), dy1, dy2, weight1, weight2, mean, rstd,
        dx, dbranch, partial, n, d, RESIDUAL=dz is not None, PARTIALS=PARTIALS,
        ROWS=rows, LANES1=first, LANES2=second, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    return dx, dbranch, partial.sum(0)
