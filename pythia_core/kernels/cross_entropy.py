"""Unembedding and cross-entropy in one, without ever holding all logits.

Rows are taken in chunks that stay in the cache; the gradients with respect to the hidden states and
the weight are computed in the same pass and only need scaling later. The softmax and loss are
fp32 whatever the dtype of the products, as in GPT-NeoX with `fp16_lm_cross_entropy` false. Padded
vocabulary rows take part in the softmax, as they did in training.

On a CUDA device the same runs as one registered torch operation, the softmax of a chunk being a
Triton kernel (cross_entropy_triton). Speed there: not yet measured.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pythia_core.kernels import gpu, native

CHUNK_ELEMENTS = 1 << 21
"""Logits per chunk, measured on two cores: half or double is slower at every laptop size."""
CHUNK_ELEMENTS_CUDA = 1 << 28
"""The same on a CUDA device: 5,248 rows of Pythia's vocabulary, 0.5 GB. Not yet measured."""


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


# The same as an operation that torch.compile takes whole. The gradients are outputs of the forward.


@torch.library.custom_op("pythia::linear_cross_entropy", mutates_args=())
def _fused(
    hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, and the gradients of the summed loss: of `hidden`, and in fp32 of `weight`."""
    from pythia_core.kernels.cross_entropy_triton import cross_entropy_

    n, d = hidden.shape
    vocab = weight_c.shape[0]
    chunk = CHUNK_ELEMENTS_CUDA // vocab
    chunk = min(n, max(128, chunk // 128 * 128))  # whole tiles of the matrix products
    targets = targets.contiguous()
    losses = hidden.new_empty(n, dtype=torch.float32)
    dhidden = torch.empty_like(hidden)
    dweight = hidden.new_zeros(vocab, d, dtype=torch.float32)
    workspace = hidden.new_empty(chunk, vocab)
    for start in range(0, n, chunk):
        part = slice(start, min(start + chunk, n))
        h = hidden[part]
        logits = torch.mm(h, weight_c.t(), out=workspace[: len(h)])
        cross_entropy_(logits, targets[part], losses[part])
        torch.mm(logits, weight_c, out=dhidden[part])
        dweight += _product_fp32(logits.t(), h)
    return losses.mean(), dhidden, dweight


def _product_fp32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with an fp32 result; on the CPU, where torch has no such product, of fp32 copies."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    if a.device.type == "cpu":
        return torch.mm(a.float(), b.float())
    return torch.mm(a, b, out_dtype=torch.float32)


@_fused.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    fp32 = torch.float32
    return (
        hidden.new_empty((), dtype=fp32),
        torch.empty_like(hidden),
        hidden.new_empty(weight_c.shape, dtype=fp32),
    )


def _keep_gradients(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])


_fused.register_autograd(
    lambda ctx, dloss, *_: _LinearCrossEntropy.backward(ctx, dloss), setup_context=_keep_gradients
)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor
) -> Tensor:
    """Mean cross-entropy in nats of `hidden` (n, d) unembedded by `weight_c` (vocab, d).

    Args:
        weight: fp32 master, receives the gradient. weight_c: its copy in the dtype of `hidden`.
        targets: (n,) int64. On a CUDA device one outside [0, vocab) makes the loss NaN.
    """
    if gpu.use_triton(hidden):
        gpu.check("linear_cross_entropy", {"hidden": hidden.dtype, "weight_c": weight_c.dtype})
        return _fused(hidden, weight, targets, weight_c)[0]
    return _LinearCrossEntropy.apply(hidden, weight, targets, weight_c)
