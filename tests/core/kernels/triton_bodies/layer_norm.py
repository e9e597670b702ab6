"""The two LayerNorms of a parallel block and the residual as one Triton kernel each way."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, check, normal
from torch import Tensor

from pythia_core import kernels
from pythia_core.errors import ConfigError
from pythia_core.kernels.layer_norm import layer_norm_pair_reference

BRANCHES = pytest.mark.parametrize("branches", [0, 2], ids=["alone", "residual"])


def inputs_of(n: int, d: int, branches: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """x and norms in fp32, branches in the compute dtype, as in the model."""
    x = 3 + normal(n, d)
    added = [normal(n, d, seed=5 + i).to(dtype).to(device) for i in range(branches)]
    norms = [normal(d, seed=1 + i).float().to(device) for i in range(4)]
    return [x.float().to(device), *added, *norms]


@DTYPES
@BRANCHES
@pytest.mark.parametrize(("n", "d"), [(1, 8), (37, 24), (140, 128), (5, 1023), (3, 2560)])
def test_values_and_gradients(
    dtype: torch.dtype, branches: int, n: int, d: int, device: str
) -> None:

    def call(function, out: torch.dtype):
        def called(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            results = function(x, rest[:branches], rest[branches:], 1e-5, out)
            return results if branches else results[1:]

        return called

    check(
        call(kernels.layer_norm_pair, dtype),
        call(layer_norm_pair_reference, dtype),
        inputs_of(n, d, branches, dtype, device),
        call(layer_norm_pair_reference, torch.float64),
    )


def test_large_means_lose_no_digits(device: str) -> None:
    """The variance of values near 4,096 is not computed as a difference of large squares."""
    x = (4096 + normal(4, 64)).float().to(device)
    one, zero = torch.ones(64, device=device), torch.zeros(64, device=device)
    _, y, _ = kernels.layer_norm_pair(x, (), (one, zero, one, zero), 1e-5, torch.float32)
    exact = torch.nn.functional.layer_norm(x.double(), (64,))
    assert (y - exact).abs().max().item() < 1e-3


def test_strided_inputs(device: str) -> None:
    norms = [normal(16, seed=i).float().to(device) for i in range(4)]
    x, a, b = (normal(16, 9, seed=i).float().to(device).t() for i in range(3))
    arguments = (norms, 1e-5, torch.float32)
    strided = kernels.layer_norm_pair(x, (a, b), *arguments)
    packed = kernels.layer_norm_pair(x.contiguous(), (a.contiguous(), b.contiguous()), *arguments)
    assert all(torch.equal(s, p) for s, p in zip(strided, packed, strict=True))


def test_unsupported_inputs_are_refused(device: str) -> None:
    x = torch.zeros(1, 8193, device=device)
    with pytest.raises(
        ConfigError, match="rows have 8193 elements, but the kernel takes at most 8192"
    ):
        kernels.layer_norm_pair(x, (), [x[0]] * 4, 1e-5, torch.float32)
    x = torch.zeros(1, 8, device=device)
    with pytest.raises(ConfigError, match="dtype is float64"):
        kernels.layer_norm_pair(x, (), [x[0]] * 4, 1e-5, torch.float64)


@BRANCHES
def test_the_operations_pass_opcheck(branches: int, device: str) -> None:
    inputs = [t.requires_grad_() for t in inputs_of(5, 8, branches, torch.bfloat16, device)]
    x, added, norms = inputs[0], inputs[1 : 1 + branches], inputs[1 + branches :]
    operation = torch.ops.pythia.layer_norm_pair.default
    torch.library.opcheck(operation, (x, added, norms, 1e-5, torch.bfloat16))


@BRANCHES
def test_torch_compile_needs_no_graph_break(branches: int, device: str) -> None:
    inputs = inputs_of(5, 8, branches, torch.bfloat16, device)

    def loss(x: Tensor, *rest: Tensor) -> Tensor:
        z, y1, y2 = kernels.layer_norm_pair(
            x, rest[:branches], rest[branches:], 1e-5, torch.bfloat16
        )
        return z.square().sum() + (y1.float() * y2.float()).sum()

    def gradients(function) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in inputs]
        return torch.autograd.grad(function(*leaves), leaves)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(gradients(compiled), gradients(loss), strict=True):
        assert torch.equal(ours, eager)
