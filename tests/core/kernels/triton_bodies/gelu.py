"""Bias and GELU as one Triton kernel each way."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, check, normal
from torch import Tensor

from pythia_core import kernels
from pythia_core.errors import ConfigError
from pythia_core.kernels.gelu import bias_gelu_reference

FORMS = pytest.mark.parametrize("form", ["tanh", "erf"])


@DTYPES
@FORMS
@pytest.mark.parametrize(("n", "d"), [(1, 3), (37, 24), (70, 260)])
def test_values_and_gradients(dtype: torch.dtype, form: str, n: int, d: int, device: str) -> None:
    bias = normal(d, seed=1).to(dtype).float().to(device)  # an fp32 master, exact in `dtype`
    check(
        lambda x, bias: kernels.bias_gelu(x, bias, form),
        lambda x, bias: bias_gelu_reference(x, bias, form),
        [(3 * normal(n, d)).to(device, dtype), bias],
    )


@FORMS
def test_extreme_values(form: str, device: str) -> None:
    x = torch.tensor([[-1e4, -20.0, 0.0, 20.0, 1e4]], device=device).requires_grad_()
    y = kernels.bias_gelu(x, torch.zeros(5, device=device), form)
    y.sum().backward()
    assert y.flatten().tolist() == [0, 0, 0, 20, 1e4]
    assert x.grad.flatten().tolist() == [0, 0, 0.5, 1, 1]


def test_strided_inputs(device: str) -> None:
    x, bias = normal(24, 9).float().to(device).t(), normal(24).float().to(device)
    strided = kernels.bias_gelu(x, bias, "tanh")
    assert torch.equal(strided, kernels.bias_gelu(x.contiguous(), bias, "tanh"))


def test_unknown_dtypes_are_refused(device: str) -> None:
    x = torch.zeros(2, 3, dtype=torch.float64, device=device)
    with pytest.raises(ConfigError, match="x is float64, but the kernel takes only float32"):
        kernels.bias_gelu(x, x[0], "tanh")


def test_the_operations_pass_opcheck(device: str) -> None:
    x, bias = normal(5, 8).to(device, torch.bfloat16), normal(8).float().to(device)
    arguments = (x.requires_grad_(), bias.requires_grad_(), bias.detach().to(x), True)
    torch.library.opcheck(torch.ops.pythia.bias_gelu.default, arguments)


def test_torch_compile_needs_no_graph_break(device: str) -> None:
    inputs = [normal(5, 8).to(device, torch.bfloat16), normal(8).float().to(device)]

    def loss(x: Tensor, bias: Tensor) -> Tensor:
        return kernels.bias_gelu(x, bias, "tanh").float().square().sum()

    def gradients(function) -> tuple[Tensor, ...]:
        leaves = [t.clone().requires_grad_() for t in inputs]
        return torch.autograd.grad(function(*leaves), leaves)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(gradients(compiled), gradients(loss), strict=True):
        assert torch.equal(ours, eager)
