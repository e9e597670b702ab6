"""Partial rotary position embedding, half-split ("rotate-half") layout, as in GPT-NeoX v1.0.

Only the first `rotary_dims` of each query and key head are rotated (25 % in Pythia); lane i is
paired with lane i + rotary_dims/2 and turned by the angle position * base^(-2i / rotary_dims).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(
    seq_len: int, rotary_dims: int, base: float, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle, each (seq_len, rotary_dims / 2), computed in fp32."""
    lanes = torch.arange(0, rotary_dims, 2, dtype=torch.float32, device=device)
    inverse_frequency = base ** (-lanes / max(rotary_dims, 1))
    positions = torch.arange(seq_len, dtype=torch.float32, device=device)
    angles = torch.outer(positions, inverse_frequency)
    return angles.cos(), angles.sin()


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading lanes of x (..., seq, head_dim); cos, sin: (seq, rotary_dims / 2)."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
