"""AdamW on flat fp32 buffers; also refreshes a copy of the parameters in the compute dtype.

Two tensors on the device control an update. `factor` scales the gradient, to clip it and to undo
the loss scale. `skip` leaves parameters and moments unchanged. So the training loop need not wait
for the gradient norm.

With Triton, an update is one pass over memory: 30 bytes per parameter if the copy is in bf16
(adamw_triton). Without Triton, an update takes three passes.
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
    """The tensors of an AdamW update, all flat, contiguous and of equal length.

    Attributes:
        params, grad: the parameters and their gradient, in fp32.
        exp_avg, exp_avg_sq: Adam's two moments, in fp32.
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
    """The hyperparameters of AdamW, except the learning rate."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def corrections(self, update: int) -> tuple[float, float]:
        """Return the divisors that correct the bias of the two moments; `update` counts from 1."""
        return 1 - self.beta1**update, 1 - self.beta2**update


def adamw_reference_(
    b: AdamWBuffers, h: AdamWHyperparameters, lr: float, update: int, factor: Tensor, skip: Tensor
) -> None:
    """Apply decoupled weight decay and then Adam, in place, with every step written out in torch.

    Args:
        update: number of updates since the moments were zero, including this one.
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
    """Apply the update of `adamw_reference_` in the fastest way on this device.

    Do not use `b.grad` afterwards: on some devices, this function multiplies it by `factor`.
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
    """Apply the update of `adamw_` with torch's fused kernel and two extra passes over memory."""
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
