"""How a kernel is judged: against fp64, by what the plain formula loses in the same dtype."""

from __future__ import annotations

import pytest
import torch
from pythia_book.bench.correctness import problem
from pythia_book.bench.kernels import Implementation, results
from torch import Tensor

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed random numbers in fp64, made on the CPU for all devices."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(
    kernel: Implementation,
    reference: Implementation,
    inputs: list[Tensor],
    exact: Implementation | None = None,
) -> None:
    """Assert that a kernel is as accurate as it should be, and that a second call gives equal bits.

    The relative error of every output and gradient, compared with fp64, may be at most twice the
    error of `reference` in the same dtype. In fp32, an error of 1e-6 is allowed as well.

    Args:
        inputs: in the dtypes and on the device under test.
        exact: computes the same as `reference` and accepts fp64; None: `reference` itself does.
    """
    truth = results(exact or reference, [x.double().cpu() for x in inputs])
    least = 1e-6 if all(x.dtype == torch.float32 for x in inputs) else 1e-12
    assert not problem(kernel, reference, inputs, truth, least=least)
