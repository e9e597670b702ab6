"""The Triton part of the chunked loss: a row of logits becomes its gradient, in place.

The row is read twice, in blocks: for its maximum and sum of exponentials, then for the gradient.
A whole row of 50,304 would spill registers on sm_90; the second read hits the L2 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, WARPS = 4096, 8


@triton.jit
def cross_entropy_kernel(
    logits_ptr,  # (rows, vocab), the last stride 1; overwritten by softmax - onehot(target)
    targets_ptr,  # (rows,) int64
    losses_ptr,  # (rows,) fp32
    row_stride,
    vocab,
    BLOCK: tl.constexpr,
):
    """One row: loss = log(sum exp x) - x[target], fp32. NaN if the target is not in [0, vocab)."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    lanes = tl.arange(0, BLOCK)
    target = tl.load(targets_ptr + row)
    valid = (target >= 0) & (target < vocab)
    correct = tl.load(logits_ptr + target, mask=valid, other=float("nan")).to(tl.float32)
    top = float("-inf")
    total = 0.0
    for start in range(0, vocab, BLOCK):
        inside = start + lanes < vocab
        x = tl.load(logits_ptr + start + lanes, mask=inside, other=float("-inf")).to(tl.float32)
        new = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(x - new), 0)
        top = new
    tl.store(losses_ptr + row, tl.log(total) + (top - correct))
    inverse = 1.0 / total
    for start in range(0, vocab, BLOCK):
        inside = start + lanes < vocab
        x = tl.load(logits_ptr + start + lanes, mask=inside, other=float("-inf")).to(tl.float32)
        p = tl.exp(x - top) * inverse
        p = tl.where(start + lanes == target, p - 1.0, p)
        tl.store(logits_ptr + start + lanes, p.to(logits_ptr.dtype.element_ty), mask=inside)


def cross_entropy_(logits: Tensor, targets: Tensor, losses: Tensor) -> None:
    """Turn logits (n, vocab) into softmax - onehot(target) and write the n losses.

    Args:
        logits: last stride 1. targets: (n,) int64, contiguous. losses: (n,) fp32, contiguous.
    """
    n, vocab = logits.shape
    assert logits.stride(1) == 1 and targets.is_contiguous() and losses.is_contiguous()
    assert targets.dtype == torch.int64 and losses.dtype == torch.float32
    if n:
        block = min(BLOCK, triton.next_power_of_2(vocab))
        cross_entropy_kernel[(n,)](
            logits, targets, losses, logits.stride(0), vocab, BLOCK=block, num_warps=WARPS
        )
