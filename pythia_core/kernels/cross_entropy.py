"""Unembedding and cross-entropy in one, without ever holding all logits.

Rows are taken in chunks that stay in the cache; in a forward that will be differentiated the
gradients with respect to the hidden states and the weight are computed in the same pass (they only
need scaling later). A token's loss is capped at 87 nats, where fp32 probabilities end. The softmax and the loss are fp32 whatever the dtype of the products, as in
GPT-NeoX with `fp16_lm_cross_entropy` false. Padded vocabulary rows take part in the softmax, as
they did in training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

CHUNK_ELEMENTS = 1 << 21
"""Logits per chunk, measured on two cores: half or double is slower at every laptop size."""


def linear_cross_entropy_reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of hidden (n, d) @ weight (vocab, d)^T against targets (n,), in nats."""
    logits = torch.nn.functional.linear(hidden, weight.to(hidden.dtype))
    return torch.nn.functional.cross_entropy(logits.float(), targets)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor
    ) -> Tensor:
        n, d = hidden.shape
        vocab = weight_c.shape[0]
        chunk = max(1, min(n, CHUNK_ELEMENTS // vocab))
        narrow = hidden.dtype != torch.float32
        losses = hidden.new_empty(n, dtype=torch.float32)
        dhidden = torch.empty_like(hidden)
        dweight = hidden.new_zeros(vocab, d, dtype=torch.float32)
        # workspaces are reused by every chunk: fresh ones would cost a page fault per 4 KB
        wide = hidden.new_empty(chunk, vocab, dtype=torch.float32)
        products = torch.empty_like(wide, dtype=hidden.dtype) if narrow else wide
        rows = torch.arange(chunk, device=hidden.device)
        for start in range(0, n, chunk):
            part = slice(start, min(start + chunk, n))
            h, target, index = hidden[part], targets[part], rows[: min(chunk, n - start)]
            logits, p = products[: len(h)], wide[: len(h)]
            torch.mm(h, weight_c.t(), out=logits)
            if narrow:
                p.copy_(logits)
            torch.softmax(p, -1, out=p)
            p_target = p[index, target]
            losses[part] = -p_target.clamp_min(torch.finfo(torch.float32).tiny).log()
            p[index, target] = p_target - 1  # now the gradient with respect to the logits
            if narrow:
                logits.copy_(p)
                dweight += torch.mm(logits.t(), h)
            else:
                dweight.addmm_(p.t(), h)
            torch.mm(logits, weight_c, out=dhidden[part])
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
