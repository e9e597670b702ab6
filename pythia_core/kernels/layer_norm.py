"""LayerNorm with fp32 statistics and fp32 affine parameters, for any activation dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dim, statistics in fp32 or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (scaled * weight + bias).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of x (..., d) with fp32 weight (d,), bias (d,); the result has the dtype of `x`."""
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)
