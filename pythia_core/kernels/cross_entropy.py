"""Unembedding and cross-entropy in one operation, which never stores all logits at once.

The forward computes logits in chunks of tokens, and also the gradients, which the backward only
scales. Softmax and loss are in fp32, whatever the dtype of the matrix products, as in GPT-NeoX with
`fp16_lm_cross_entropy` false. As in Pythia's training, the softmax includes the padding rows of the
vocabulary.

The softmax is a Triton kernel on a CUDA device (cross_entropy_triton), and a C function on a CPU
with a C compiler. `target_log_probabilities` scores tokens, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pythia_core.errors import DataError
from pythia_core.kernels import dispatch, native
from pythia_core.kernels.linear import Accumulator, accumulator, add_product_

CHUNK_ELEMENTS = 1 << 21
"""Logits per chunk without Triton. On two CPU cores, half or twice as many are slower."""
CHUNK_ELEMENTS_CUDA = 1 << 28
"""Logits per chunk with Triton, 0.5 GB in 16 bits. Other numbers have not been measured."""


def linear_cross_entropy_reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute `linear_cross_entropy` in plain torch."""
    logits = torch.nn.functional.linear(hidden, weight.to(hidden.dtype))
    return torch.nn.functional.cross_entropy(logits.float(), targets)


def check_targets(targets: Tensor, vocab: int) -> None:
    """Raise a DataError if a token id is not in 0..vocab - 1."""
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < vocab:
        raise DataError(
            f"target tokens must be in 0..{vocab - 1}, got {int(targets.min())} to "
            f"{int(targets.max())}; was the text encoded with another tokenizer?"
        )


def target_log_probabilities(
    hidden: Tensor, weight: Tensor, index: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each target, and whether it is the most likely token.

    The C functions of native.c, which must be available, do not store the logits. The result for a
    target does not depend on the other rows and targets. There are no gradients.

    Args:
        hidden: (n, d), fp32.
        weight: (vocab, d), fp32; the logits are `hidden @ weight.T`.
        index: (q,) int64, the row of `hidden` that predicts each target.
        targets: (q,) int64, token ids.

    Returns:
        The log-probabilities in nats, (q,) fp32, and whether each target is most likely, (q,) bool.

    Raises:
        DataError: a target is not in the vocabulary.
    """
    (n, d), q = hidden.shape, len(targets)
    check_targets(targets, len(weight))
    hidden, weight = hidden.contiguous(), weight.detach().contiguous()
    log_sum, largest = hidden.new_empty(2, n)
    logits = hidden.new_empty(q)
    native.function("log_sum_exp", hidden.dtype)(
        hidden, weight, log_sum, largest, n, len(weight), d
    )
    native.function("target_logits", hidden.dtype)(
        hidden, weight, index.contiguous(), targets.contiguous(), logits, q, d
    )
    return logits - log_sum[index], logits >= largest[index]


def _to_gradient_(logits: Tensor, targets: Tensor, losses: Tensor) -> None:
    """Replace each row of logits by softmax(row) - onehot(target), and write the fp32 losses."""
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
    add_: Accumulator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the mean cross-entropy and the gradients of the summed cross-entropy, in chunks.

    Returns the mean loss, the gradient of `hidden` in its dtype, and the fp32 gradient of the
    weight, which `add_` sums.
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
        add_(dweight, logits, h)
    return losses.mean(), dhidden, dweight


def _native_loss_and_gradients(
    hidden: Tensor, weight_c: Tensor, targets: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the result of `_loss_and_gradients` with the C functions of native.c.

    The exponentials of the logits overwrite the logits, but are not normalized. Instead, each row
    of `hidden` and of its gradient is divided by the row's sum of exponentials. So exponentials are
    computed only once. The terms of the targets are added separately, in fp32.
    """
    n, d = hidden.shape
    hidden, targets = hidden.contiguous(), targets.contiguous()
    losses, inverse, error = hidden.new_empty(3, n, dtype=torch.float32)
    dhidden, scaled = torch.empty_like(hidden), hidden.new_empty(chunk, d)
    dweight = hidden.new_zeros(len(weight_c), d, dtype=torch.float32)
    workspace = hidden.new_empty(chunk, len(weight_c))  # see _loss_and_gradients
    cross_entropy, add = (native.function(f, hidden.dtype) for f in ("cross_entropy", "add"))
    for start in range(0, n, chunk):
        part = slice(start, min(start + chunk, n))
        h = hidden[part]
        logits = torch.mm(h, weight_c.t(), out=workspace[: len(h)])
        cross_entropy(
            logits, targets[part], h, losses[part], inverse[part], error[part], scaled,
            *logits.shape, d,
        )  # fmt: skip
        torch.mm(logits, weight_c, out=dhidden[part])
        add(dweight, torch.mm(logits.t(), scaled[: len(h)]), dweight.numel())
    add_targets = native.function("cross_entropy_targets", hidden.dtype)
    add_targets(hidden, weight_c, targets, inverse, error, dhidden, dweight, n, d)
    return losses.mean(), dhidden, dweight


class _LinearCrossEntropy(torch.autograd.Function):
    """An autograd function for `linear_cross_entropy` without Triton."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor
    ) -> Tensor:
        ctx.weight_grad = None
        chunk = max(1, min(len(hidden), CHUNK_ELEMENTS // len(weight_c)))
        if native.available(hidden):
            result = _native_loss_and_gradients(hidden, weight_c, targets, chunk)
        else:
            result = _loss_and_gradients(
                hidden, weight_c, targets, chunk, _to_gradient_, add_product_
            )
        loss, dhidden, dweight = result
        ctx.save_for_backward(dhidden, dweight)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dhidden, dweight = ctx.saved_tensors
        scale = dloss / dhidden.shape[0]
        dhidden = dhidden * scale.to(dhidden.dtype)
        if ctx.weight_grad is None:
            return dhidden, dweight * scale, None, None
        ctx.weight_grad.addcmul_(dweight, scale)
        return dhidden, None, None, None


# A registered operation, which torch.compile does not trace.


@torch.library.custom_op("pythia::linear_cross_entropy", mutates_args=())
def _fused(
    hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor, weight_grad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the result of `_loss_and_gradients` with the Triton kernel.

    The forward pass ignores `weight_grad`, an argument because setup_context sees only arguments.
    """
    from pythia_core.kernels.cross_entropy_triton import cross_entropy_

    return _loss_and_gradients(
        hidden,
        weight_c,
        targets.contiguous(),
        even_chunk(len(hidden), len(weight_c)),
        cross_entropy_,
        accumulator(hidden.device, hidden.dtype),
    )


def even_chunk(n: int, vocab: int) -> int:
    """Return how many of n rows to process at a time on a CUDA device.

    The chunks are as equal as possible, since a short last one would leave the device idle. They
    consist of whole tiles (128 rows) of the matrix products.
    """
    most = max(128, CHUNK_ELEMENTS_CUDA // vocab // 128 * 128)
    chunks = max(1, -(-n // most))
    return max(1, min(n, -(-n // (128 * chunks)) * 128))


@_fused.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, weight_c: Tensor, weight_grad: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    fp32 = torch.float32
    return (
        hidden.new_empty((), dtype=fp32),
        torch.empty_like(hidden),
        hidden.new_empty(weight_c.shape, dtype=fp32),
    )


def _keep_gradients(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    """Save the gradients that the forward has computed, and the buffer for one of them."""
    ctx.save_for_backward(*output[1:])
    ctx.weight_grad = inputs[-1]


_fused.register_autograd(
    lambda ctx, dloss, *_: (*_LinearCrossEntropy.backward(ctx, dloss), None),
    setup_context=_keep_gradients,
)


@dispatch.probe("linear_cross_entropy")
def _probe(device: torch.device, dtype: torch.dtype, vocab: int) -> None:
    """Try the Triton kernel on two rows of logits (see `dispatch.probe`)."""
    from pythia_core.kernels.cross_entropy_triton import cross_entropy_

    logits, targets = torch.zeros(2, vocab, device=device, dtype=dtype), torch.zeros(2).long()
    cross_entropy_(logits, targets.to(device), torch.zeros(2, device=device))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weight_c: Tensor,
    weight_grad: Tensor | None = None,
) -> Tensor:
    """Return the mean cross-entropy, in nats, of the logits `hidden @ weight_c.T`.

    Args:
        hidden: (n, d).
        weight: (vocab, d), the fp32 parameter, which receives the gradient.
        targets: (n,) int64. In the Triton kernel, an id outside [0, vocab) makes the loss NaN.
        weight_c: copy of `weight` in the dtype of `hidden`, used in the matrix products.
        weight_grad: an fp32 buffer to which the Triton path adds the gradient of the weight; None:
            autograd receives the gradient.

    Raises:
        ConfigError: the Triton kernel cannot take a dtype.
    """
    weight_c = weight_c.detach()  # see kernels.linear
    if dispatch.use_triton(hidden):
        dispatch.check("linear_cross_entropy", {"hidden": hidden.dtype, "weight_c": weight_c.dtype})
        device, dtype = hidden.device, hidden.dtype
        if dispatch.is_supported("linear_cross_entropy", device, dtype, len(weight_c)):
            return _fused(hidden, weight, targets, weight_c, weight_grad)[0]
    return _LinearCrossEntropy.apply(hidden, weight, targets, weight_c)
