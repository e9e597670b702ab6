"""Unembedding and cross-entropy in one, without ever holding all logits.

Rows are taken in chunks that stay in the cache; the gradients with respect to the hidden states and
the weight are computed in the same pass and only need scaling later. The softmax and loss are
fp32 whatever the dtype of the products, as in GPT-NeoX with `fp16_lm_cross_entropy` false. Padded
vocabulary rows take part in the softmax, as they did in training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pythia_core.kernels import native

CHUNK_ELEMENTS = 1 << 21
"""Logits per chunk, measured on two cores: half or double is slower at every laptop size."""


def linear_cross_entropy_reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of hidden (n, d) @ weight (vocab, d)^T against targets (n,), in nats."""
    logits = torch.nn.functional.linear(hidden, weight.to(hidden.dtype))
    return torch.nn.functional.cross_entropy(logits.float(), targets)


def _to_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """Turn logits (n, vocab) into softmax - onehot(target) in place; returns the n losses."""
    cross_entropy = native.function("cross_entropy", logits)
    if cross_entropy:
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        cross_entropy(logits, targets.contiguous(), losses, *logits.shape)
        return losses
    logp = torch.log_softmax(logits.float(), -1)
    index = torch.arange(len(logits), device=logits.device)
    losses = -logp[index, targets]
    p = logp.exp_()
    p[index, targets] -= 1
    logits.copy_(p)
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor
    ) -> Tensor:
        n, d = hidden.shape
        vocab = weight_c.shape[0]
        chunk = max(1, min(n, CHUNK_ELEMENTS // vocab))
        losses = hidden.new_empty(n, dtype=torch.float32)
        dhidden = torch.empty_like(hidden)
        dweight = hidden.new_zeros(vocab, d, dtype=torch.float32)
        # the workspace is reused by every chunk: fresh memory would cost a page fault per 4 KB
        workspace = hidden.new_empty(chunk, vocab)
        for start in range(0, n, chunk):
            part = slice(start, min(start + chunk, n))
            h = hidden[part]
            logits = torch.mm(h, weight_c.t(), out=workspace[: len(h)])
            losses[part] = _to_gradient_(logits, targets[part])
            torch.mm(logits, weight_c, out=dhidden[part])
            if h.dtype == torch.float32:
                dweight.addmm_(logits.t(), h)
            else:
                dweight += torch.mm(logits.t(), h)
        ctx.save_for_backward(dhidden, dweight)
        return losses.mean()

    @staticmethod
    def backward(ctx: FunctionCtx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        scale = dloss / dhidden.shape[0]
        return dhidden * scale.to(dhidden.dtype), dweight * scale, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor
) -> Tensor:
    """Mean cross-entropy in nats of `hidden` (n, d) unembedded by `weight_c` (vocab, d).

    Args:
        weight: fp32 master, receives the gradient. weight_c: its copy in the dtype of `hidden`.
        targets: (n,) int64.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, weight_c)
