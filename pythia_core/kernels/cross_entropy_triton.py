"""The Triton kernel of the cross-entropy, which replaces each row of logits by its gradient.

A row is read twice, in blocks: for its maximum and sum of exponentials, then for the gradient.
Holding all 50,304 logits of a row would spill registers on sm_90. The second read hits the L2
cache.
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
    """Replace a row of logits by its gradient; write the loss (NaN unless 0 <= target < vocab)."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    lane = tl.arange(0, BLOCK)
    target = tl.load(targets_ptr + row)
    valid = (target >= 0) & (target < vocab)
    correct = tl.load(logits_ptr + target, mask=valid, other=float("nan")).to(tl.float32)
    row_max = float("-inf")
    row_sum = 0.0
    for start in range(0, vocab, BLOCK):
        inside = start + lane < vocab
        x = tl.load(logits_ptr + start + lane, mask=inside, other=float("-inf")).to(tl.float32)
        new_max = tl.maximum(row_max, tl.max(x, 0))
        row_sum = row_sum * tl.exp(row_max - new_max) + tl.sum(tl.exp(x - new_max), 0)
        row_max = new_max
    tl.store(losses_ptr + row, tl.log(row_sum) + (row_max - correct))
    inverse = 1.0 / row_sum
    for start in range(0, vocab, BLOCK):
        inside = start + lane < vocab
        x = tl.load(logits_ptr + start + lane, mask=inside, other=float("-inf")).to(tl.float32)
        p = tl.exp(x - row_max) * inverse
        p = tl.where(start + lane == target, p - 1.0, p)
        tl.store(logits_ptr + start + lane, p.to(logits_ptr.dtype.element_ty), mask=inside)


def cross_entropy_(logits: Tensor, targets: Tensor, losses: Tensor) -> None:
    """Replace each row of `logits` by softmax(row) - onehot(target), and write the losses.

    Args:
        logits: (n, vocab), the last stride must be 1.
        targets: (n,) int64, contiguous.
        losses: (n,) fp32, contiguous.
    """
    n, vocab = logits.shape
    assert logits.stride(1) == 1 and targets.is_contiguous() and losses.is_contiguous()
    assert targets.dtype == torch.int64 and losses.dtype == torch.float32
    if n:
        block = min(BLOCK, triton.next_power_of_2(vocab))
        cross_entropy_kernel[(n,)](
            logits, targets, losses, logits.stride(0), vocab, BLOCK=block, num_warps=WARPS
        )
