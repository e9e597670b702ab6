"""AdamW on flat fp32 buffers: clip, update and refresh the compute copy, or skip the update.

Everything is decided on the device: `factor` scales the gradient (clipping, loss scale) and `skip`
leaves all buffers unchanged, so that the loop need not wait for a norm before the next step. On a
CUDA device with Triton that is one pass, 30 bytes per parameter with a bf16 copy (adamw_triton;
speed not yet measured). Elsewhere it is torch's fused kernel, preceded by a pass that scales the
gradient and followed by one that rounds the copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw

from pythia_core.kernels import dispatch


@dataclass(frozen=True)
class Moving:
    """What an update changes: flat and contiguous tensors of n elements.

    Attributes:
        params, grad, exp_avg, exp_avg_sq: fp32. copy: of the params, in the compute dtype, or None.
        n_decayed: weight decay applies to the first n_decayed parameters only.
    """

    params: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    copy: Tensor | None
    n_decayed: int


@dataclass(frozen=True)
class AdamW:
    """The constants of a run."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float

    def corrections(self, update: int) -> tuple[float, float]:
        """The divisors of the two moments at update 1, 2, ..."""
        return 1 - self.beta1**update, 1 - self.beta2**update


def adamw_reference_(
    moving: Moving, constants: AdamW, lr: float, update: int, factor: Tensor, skip: Tensor
) -> None:
    """Decoupled weight decay, then Adam, written out; in the dtype of the parameters.

    Args:
        update: 1 for the first; the age of the moments.
        factor: 0-dim, what the gradient is multiplied by. skip: 0-dim, 1 for "change nothing".
    """
    if skip:
        return
    m, c = moving, constants
    g = m.grad * factor
    m.exp_avg.mul_(c.beta1).add_(g, alpha=1 - c.beta1)
    m.exp_avg_sq.mul_(c.beta2).add_(g * g, alpha=1 - c.beta2)
    correction1, correction2 = c.corrections(update)
    m.params[: m.n_decayed].mul_(1 - lr * c.weight_decay)
    root = m.exp_avg_sq.sqrt() / math.sqrt(correction2) + c.eps
    m.params.sub_(lr / correction1 * m.exp_avg / root)
    if m.copy is not None:
        m.copy.copy_(m.params)


def adamw_(
    moving: Moving, constants: AdamW, lr: float, update: int, factor: Tensor, skip: Tensor
) -> None:
    """One update in place, the fastest way on the device; arguments as in `adamw_reference_`.

    Whether `grad` is left scaled by `factor` depends on the path taken.
    """
    device = moving.params.device
    dtype = torch.float32 if moving.copy is None else moving.copy.dtype
    if dispatch.use_triton(moving.params) and dispatch.works("adamw", device, dtype, 0):
        one_pass_(moving, constants, lr, update, factor, skip)
    else:
        passes_(moving, constants, lr, update, factor, skip)


@dispatch.probe("adamw")
def _probe(device: torch.device, dtype: torch.dtype, _: int) -> None:
    p, g, m, v = torch.zeros(4, 8, device=device).unbind(0)
    copy = None if dtype == torch.float32 else p.to(dtype)
    one_pass_(Moving(p, g, m, v, copy, 4), AdamW(0.9, 0.95, 1e-8, 0.1), 0.0, 1, v[0], v[0])


def passes_(
    moving: Moving, constants: AdamW, lr: float, update: int, factor: Tensor, skip: Tensor
) -> None:
    """The same in torch's fused kernel, with a pass before and one after it."""
    m, c = moving, constants
    if factor.device.type != "cpu" or factor != 1:  # looking at it is free on a CPU
        m.grad.mul_(factor)
    for part, decay in (
        (slice(0, m.n_decayed), c.weight_decay),
        (slice(m.n_decayed, None), 0.0),
    ):
        torch_adamw(
            [m.params[part]],
            [m.grad[part]],
            [m.exp_avg[part]],
            [m.exp_avg_sq[part]],
            [],
            [torch.full_like(skip, update - 1)],
            fused=True,
            found_inf=skip,
            amsgrad=False,
            maximize=False,
            lr=lr,
            beta1=c.beta1,
            beta2=c.beta2,
            weight_decay=decay,
            eps=c.eps,
        )
    if m.copy is not None:
        m.copy.copy_(m.params)


def one_pass_(
    moving: Moving, constants: AdamW, lr: float, update: int, factor: Tensor, skip: Tensor
) -> None:
    """The same in one pass of the Triton kernel, in place."""
    from pythia_core.kernels.adamw_triton import BLOCK, WARPS, adamw_kernel

    m, c = moving, constants
    for tensor in (m.params, m.grad, m.exp_avg, m.exp_avg_sq):
        assert tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert m.copy is None or m.copy.is_contiguous()
    assert factor.dtype == skip.dtype == torch.float32
    n = m.params.numel()
    correction1, correction2 = c.corrections(update)
    adamw_kernel[(-(-n // BLOCK),)](
        m.params, m.grad, m.exp_avg, m.exp_avg_sq, m.params if m.copy is None else m.copy,
        factor, skip, n, m.n_decayed,
        1 - lr * c.weight_decay, lr / correction1, 1 / math.sqrt(correction2),
        1 - c.beta1, 1 - c.beta2, c.eps,
        COPY=m.copy is not None, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
