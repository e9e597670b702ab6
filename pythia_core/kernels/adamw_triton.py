"""The Triton kernel of AdamW, which updates all buffers in one pass over memory.

The caller computes the bias corrections on the CPU, in double precision.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK, WARPS = 1024, 4


@triton.jit
def adamw_kernel(
    params_ptr,  # (n,) fp32, like the three below
    grad_ptr,
    exp_avg_ptr,
    exp_avg_sq_ptr,
    copy_ptr,  # (n,) in the compute dtype, written if COPY
    factor_ptr,  # () fp32
    skip_ptr,  # () fp32, 0 or 1
    n,
    n_decayed,
    keep,  # 1 - lr * weight_decay
    rate,  # lr / (1 - beta1^update)
    root,  # 1 / sqrt(1 - beta2^update)
    new1,  # 1 - beta1
    new2,  # 1 - beta2
    eps,
    COPY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update one block of parameters, moments and copies, or nothing if the skip flag is 1."""
    if tl.load(skip_ptr) == 0.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = at < n
        g = tl.load(grad_ptr + at, mask=mask, other=0.0) * tl.load(factor_ptr)
        m = tl.load(exp_avg_ptr + at, mask=mask, other=0.0)
        v = tl.load(exp_avg_sq_ptr + at, mask=mask, other=0.0)
        p = tl.load(params_ptr + at, mask=mask, other=0.0)
        m += new1 * (g - m)
        v += new2 * (g * g - v)
        p *= tl.where(at < n_decayed, keep, 1.0)
        p -= rate * m / (tl.sqrt_rn(v) * root + eps)
        tl.store(exp_avg_ptr + at, m, mask=mask)
        tl.store(exp_avg_sq_ptr + at, v, mask=mask)
        tl.store(params_ptr + at, p, mask=mask)
        if COPY:
            tl.store(copy_ptr + at, p.to(copy_ptr.dtype.element_ty), mask=mask)
