"""GELU in the two forms that matter for Pythia.

Training used GPT-NeoX's fused bias-GELU, the tanh form with constants 0.79788456 and 0.044715; the
converted models on the hub declare the exact (erf) form. They differ by up to 4.7e-4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gelu_reference(x: Tensor, form: str) -> Tensor:
    """GELU of any tensor, written out; `form` is "tanh" or "erf"."""
    if form == "erf":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * 0.5 * (1 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


def gelu(x: Tensor, form: str) -> Tensor:
    """GELU of any tensor; `form` is "tanh" or "erf"."""
    return torch.nn.functional.gelu(x, approximate="tanh" if form == "tanh" else "none")
