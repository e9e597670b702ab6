"""Unembedding and cross-entropy in one operation, without ever storing all logits.

Rows are processed in chunks that stay in the cache; the gradients of the hidden states and the
weight are computed in the same pass and only need scaling later. The softmax and loss are fp32
whatever the dtype of the products, as in GPT-NeoX with `fp16_lm_cross_entropy` false. The softmax
includes the padding rows of the vocabulary, as it did in Pythia's training.

On a CUDA device this is one registered torch operation with a Triton kernel for the softmax of a
chunk (cross_entropy_triton).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pythia_core.kernels import dispatch, native

CHUNK_ELEMENTS = 1 << 21
"""Logits per chunk. On two cores, half or twice as many are slower for every model size."""
CHUNK_ELEMENTS_CUDA = 1 << 28
"""Logits per chunk on a CUDA device: 5,248 rows of Pythia's vocabulary, 0.5 GB. Not measured."""


def linear_cross_entropy_reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of hidden (n, d) @ weight (vocab, d)^T against targets (n,), in nats."""
    logits = torch.nn.functional.linear(hidden, weight.to(hidden.dtype))
    return torch.nn.functional.cross_entropy(logits.float(), targets)


def _add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a^T b."""
    if a.dtype == torch.float32:
        total.addmm_(a.t(), b)
    else:
        total += torch.mm(a.t(), b)


def _to_gradient_(logits: Tensor, targets: Tensor, losses: Tensor) -> None:
    """Turn logits (n, vocab) into softmax - onehot(target) in place, and write the n losses."""
    if native.available(logits):
        cross_entropy = native.function("cross_entropy", logits.dtype)
        cross_entropy(logits, targets.contiguous(), losses, *logits.shape)
        return
    logp = torch.log_softmax(logits.float(), -1)
    index = torch.arange(len(logits), device=logits.device)
    losses.copy_(-logp[index, targets])
    p = logp.exp_()
    p[index, targets] -= 1
    logits.copy_(p)


def _loss_and_gradients(
    hidden: Tensor,
    weight_c: Tensor,
    targets: Tensor,
    chunk: int,
    to_gradient_: Callable[[Tensor, Tensor, Tensor], None],
    add_product_: Callable[[Tensor, Tensor, Tensor], object],
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss, and the gradients of the summed loss with respect to `hidden` and weight (fp32).

    Args:
        chunk: rows per chunk of logits.
        to_gradient_: (logits, targets, losses) -> None: as `_to_gradient_`.
        add_product_: (total, a, b) -> None: adds a^T b to the fp32 total.
    """
    n, d = hidden.shape
    losses = hidden.new_empty(n, dtype=torch.float32)
    dhidden = torch.empty_like(hidden)
    dweight = hidden.new_zeros(len(weight_c), d, dtype=torch.float32)
    # the workspace is reused by every chunk: fresh memory would cost a page fault per 4 KB
    workspace = hidden.new_empty(chunk, len(weight_c))
    for start in range(0, n, chunk):
        part = slice(start, min(start + chunk, n))
        h = hidden[part]
        logits = torch.mm(h, weight_c.t(), out=workspace[: len(h)])
        to_gradient_(logits, targets[part], losses[part])
        torch.mm(logits, weight_c, out=dhidden[part])
        add_product_(dweight, logits, h)
    return losses.mean(), dhidden, dweight


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor
    ) -> Tensor:
        chunk = max(1, min(len(hidden), CHUNK_ELEMENTS // len(weight_c)))
        loss, dhidden, dweight = _loss_and_gradients(
            hidden, weight_c, targets, chunk, _to_gradient_, _add_product_
        )
        ctx.save_for_backward(dhidden, dweight)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        scale = dloss / dhidden.shape[0]
        return dhidden * scale.to(dhidden.dtype), dweight * scale, None, None


# The same as a registered operation, which torch.compile does not trace; it returns the gradients.


@torch.library.custom_op("pythia::linear_cross_entropy", mutates_args=())
def _fused(
    hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See `_loss_and_gradients`."""
    from pythia_core.kernels.cross_entropy_triton import cross_entropy_

    chunk = CHUNK_ELEMENTS_CUDA // len(weight_c)
    chunk = min(len(hidden), max(128, chunk // 128 * 128))  # whole tiles of the matrix products
    return _loss_and_gradients(
        hidden, weight_c, targets.contiguous(), chunk, cross_entropy_, _add_product_fp32_
    )


def _add_product_fp32_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a^T b with an fp32 product; on CPUs, which lack `out_dtype`, from fp32 copies."""
    if a.dtype == torch.float32:
        total += torch.mm(a.t(), b)
    elif a.device.type == "cpu":
        total += torch.mm(a.t().float(), b.float())
    else:
        total += torch.mm(a.t(), b, out_dtype=torch.float32)


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


def _keep_gradients(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])


_fused.register_autograd(
    lambda ctx, dloss, *_: _LinearCrossEntropy.backward(ctx, dloss), setup_context=_keep_gradients
)


@dispatch.probe("linear_cross_entropy")
def _probe(device: torch.device, dtype: torch.dtype, vocab: int) -> None:
    from pythia_core.kernels.cross_entropy_triton import cross_entropy_

    logits, targets = torch.zeros(2, vocab, device=device, dtype=dtype), torch.zeros(2).long()
    cross_entropy_(logits, targets.to(device), torch.zeros(2, device=device))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor
) -> Tensor:
    """Mean cross-entropy in nats of `hidden` (n, d) unembedded by `weight_c` (vocab, d).

    Args:
        weight: fp32 master, receives the gradient. weight_c: its copy in the dtype of `hidden`.
        targets: (n,) int64. On a CUDA device, a target outside [0, vocab) makes the loss NaN.
    """
    weight_c = weight_c.detach()  # see kernels.linear
    if dispatch.use_triton(hidden):
        dispatch.check("linear_cross_entropy", {"hidden": hidden.dtype, "weight_c": weight_c.dtype})
        device, dtype = hidden.device, hidden.dtype
        if dispatch.is_supported("linear_cross_entropy", device, dtype, len(weight_c)):
            return _fused(hidden, weight, targets, weight_c)[0]
    return _LinearCrossEntropy.apply(hidden, weight, targets, weight_c)
