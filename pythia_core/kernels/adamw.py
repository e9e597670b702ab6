"""AdamW on flat fp32 buffers; also refreshes a copy of the parameters in the compute dtype.

An update takes two values from tensors on the device: `factor` scales the gradient (to clip it and
undo the loss scale), and `skip` leaves parameters and moments unchanged. The training loop
therefore need not wait for the gradient norm before it starts the next step.

On a CUDA device with Triton, an update is one pass over memory, with 30 bytes per parameter if the
copy is in bf16 (adamw_triton). Elsewhere it takes three passes: scale the gradient, run torch's
fused kernel, and refresh the copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from pythia_core.kernels import dispatch


@dataclass(frozen=True)
class AdamWBuffers:
    """The tensors that an AdamW update reads and writes, all flat, contiguous and of equal length.

    Attributes:
        params, grad: the parameters and their gradient, in fp32.
        exp_avg, exp_avg_sq: the two moments of Adam, in fp32.
        copy: the parameters in the compute dtype; None if the compute dtype is fp32.
        n_decayed: weight decay applies only to the first `n_decayed` parameters.
    """

    params: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    copy: Tensor | None
    n_decayed: int


@dataclass(frozen=True)
class AdamWHyperparameters:
    """The hyperparameters of AdamW that are constant over a run: all but the learning rate."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def corrections(self, update: int) -> tuple[float, float]:
        """Return Adam's two bias corrections, the divisors of the first and the second moment.

        Args:
            update: the index of the update, counted from 1.
        """
        return 1 - self.beta1**update, 1 - self.beta2**update


def adamw_reference_(
    b: AdamWBuffers, h: AdamWHyperparameters, lr: float, update: int, factor: Tensor, skip: Tensor
) -> None:
    """Apply decoupled weight decay and then Adam, in place, with every step written out in torch.

    Args:
        b: the buffers to update.
        update: 1 for the first update after the moments were zero, 2 for the next, and so on.
        factor: 0-dim tensor that multiplies the gradient.
        skip: 0-dim tensor; 1 leaves everything unchanged, 0 applies the update.
    """
    if skip:
        return
    g = b.grad * factor
    b.exp_avg.mul_(h.beta1).add_(g, alpha=1 - h.beta1)
    b.exp_avg_sq.mul_(h.beta2).add_(g * g, alpha=1 - h.beta2)
    correction1, correction2 = h.corrections(update)
    b.params[: b.n_decayed].mul_(1 - lr * h.weight_decay)
    root = b.exp_avg_sq.sqrt() / math.sqrt(correction2) + h.eps
    b.params.sub_(lr / correction1 * b.exp_avg / root)
    if b.copy is not None:
        b.copy.copy_(b.params)


def adamw_(
    b: AdamWBuffers, h: AdamWHyperparameters, lr: float, update: int, factor: Tensor, skip: Tensor
) -> None:
    """Apply one AdamW update in place, in the fastest way on this device.

    The arguments are those of `adamw_reference_`. The caller must not use `b.grad` afterwards,
    because on some devices it is multiplied by `factor` here, and on others it is unchanged.
    """
    device = b.params.device
    dtype = torch.float32 if b.copy is None else b.copy.dtype
    if dispatch.use_triton(b.params) and dispatch.is_supported("adamw", device, dtype, 0):
        adamw_triton_(b, h, lr, update, factor, skip)
    else:
        adamw_torch_(b, h, lr, update, factor, skip)


@dispatch.probe("adamw")
def _probe(device: torch.device, dtype: torch.dtype, _: int) -> None:
    """Try the Triton kernel on eight parameters (see `dispatch.probe`)."""
    p, g, m, v = torch.zeros(4, 8, device=device).unbind(0)
    copy = None if dtype == torch.float32 else p.to(dtype)
    buffers, h = AdamWBuffers(p, g, m, v, copy, 4), AdamWHyperparameters(0.9, 0.95, 1e-8, 0.1)
    adamw_triton_(buffers, h, 0.0, 1, v[0], v[0])


def adamw_torch_(
    b: AdamWBuffers, h: AdamWHyperparameters, lr: float, update: int, factor: Tensor, skip: Tensor
) -> None:
    """Apply the update of `adamw_` with torch's fused kernel.

    Before the kernel, an extra pass scales the gradient. After the kernel, another extra pass
    refreshes `b.copy`.
    """
    if factor.device.type != "cpu" or factor != 1:  # comparing on a GPU would synchronize
        b.grad.mul_(factor)
    for part, decay in (
        (slice(0, b.n_decayed), h.weight_decay),
        (slice(b.n_decayed, None), 0.0),
    ):
        torch_adamw(
            [b.params[part]],
            [b.grad[part]],
            [b.exp_avg[part]],
            [b.exp_avg_sq[part]],
            [],
            [torch.full_like(skip, update - 1)],
            fused=True,
            found_inf=skip,
            amsgrad=False,
            maximize=False,
            lr=lr,
            beta1=h.beta1,
            beta2=h.beta2,
            weight_decay=decay,
            eps=h.eps,
        )
    if b.copy is not None:
        b.copy.copy_(b.params)


def adamw_triton_(
    b: AdamWBuffers, h: AdamWHyperparameters, lr: float, update: int, factor: Tensor, skip: Tensor
) -> None:
    """Apply the update of `adamw_` with our Triton kernel, in one pass over memory."""
    from pythia_core.kernels.adamw_triton import BLOCK, WARPS, adamw_kernel

    for tensor in (b.params, b.grad, b.exp_avg, b.exp_avg_sq):
        assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert b.copy is None or b.copy.is_contiguous()
    assert factor.dtype == skip.dtype == torch.float32
    n = b.params.numel()
    correction1, correction2 = h.corrections(update)
    adamw_kernel[(-(-n // BLOCK),)](
        b.params, b.grad, b.exp_avg, b.exp_avg_sq, b.params if b.copy is None else b.copy,
        factor, skip, n, b.n_decayed,
        1 - lr * h.weight_decay, lr / correction1, 1 / math.sqrt(correction2),
        1 - h.beta1, 1 - h.beta2, h.eps,
        COPY=b.copy is not None, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
