"""In-place rotary on the packed QKV, and the packed gradient, as Triton kernels."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, check, normal
from pythia_book.bench.kernels import relative_error
from torch import Tensor

from pythia_core import kernels
from pythia_core.errors import ConfigError
from pythia_core.kernels.rotary import split_rotated, split_rotated_reference

HEAD_DIMS = pytest.mark.parametrize("head_dim", [32, 64, 80, 128, 256])


def tables(seq: int, dims: int, device: str) -> tuple[Tensor, Tensor]:
    return kernels.rotary_tables(seq, dims, 10_000.0, torch.device(device))


@DTYPES
@HEAD_DIMS
def test_values_and_gradients(dtype: torch.dtype, head_dim: int, device: str) -> None:
    cos, sin = tables(37, head_dim // 4, device)

    def kernel(qkv: Tensor) -> tuple[Tensor, ...]:
        return split_rotated(qkv.clone(), cos, sin)

    def reference(qkv: Tensor) -> tuple[Tensor, ...]:
        return split_rotated_reference(qkv, *(t.to(qkv) for t in (cos, sin)))

    check(kernel, reference, [normal(2, 37, 3, 3, head_dim).to(device, dtype)])


@pytest.mark.parametrize(("head_dim", "dims"), [(8, 2), (20, 4), (6, 0), (16, 16)])
def test_heads_of_small_models(head_dim: int, dims: int, device: str) -> None:
    cos, sin = tables(5, dims, device)

    def kernel(qkv: Tensor) -> tuple[Tensor, ...]:
        return split_rotated(qkv.clone(), cos, sin)

    def reference(qkv: Tensor) -> tuple[Tensor, ...]:
        return split_rotated_reference(qkv, *(t.to(qkv) for t in (cos, sin)))

    check(kernel, reference, [normal(1, 5, 2, 3, head_dim).float().to(device)])


@DTYPES
@pytest.mark.parametrize(("tokens", "head_dim"), [(300, 64), (3, 80), (5, 6)])
def test_the_gradient_of_the_bias_is_added(
    dtype: torch.dtype, tokens: int, head_dim: int, device: str
) -> None:
    """300 tokens are more than the programs' first tiles."""
    cos, sin = tables(tokens, head_dim // 8 * 2, device)
    qkv = normal(2, tokens, 2, 3, head_dim).to(device, dtype).requires_grad_()
    upstream = [normal(2, tokens, 2, head_dim, seed=i).to(device, dtype) for i in range(3)]
    total = torch.ones(2 * 3 * head_dim, device=device)
    for _ in range(2):
        (dqkv,) = torch.autograd.grad(split_rotated(qkv * 1, cos, sin, total), qkv, upstream)
    exact = 1 + 2 * dqkv.double().sum((0, 1)).flatten()
    assert relative_error(total.double(), exact) < (1e-6 if dtype == torch.float32 else 1e-3)


@HEAD_DIMS
def test_everything_else_is_unchanged(head_dim: int, device: str) -> None:
    """Rotating a slice of a wider buffer in place leaves v, other lanes and the rest untouched."""
    dims = head_dim // 4
    cos, sin = tables(9, dims, device)
    wide = normal(2, 9, 7 * 2 * head_dim).to(device, torch.bfloat16)
    before = wide.clone()
    qkv = wide[..., : 6 * head_dim].unflatten(-1, (2, 3, head_dim))
    q, k, v = split_rotated(qkv, cos, sin)
    assert q.data_ptr() == wide.data_ptr(), "not in place"
    old = before[..., : 6 * head_dim].unflatten(-1, (2, 3, head_dim))
    assert torch.equal(v, old[..., 2, :])
    assert torch.equal(qkv[..., dims:], old[..., dims:])
    assert torch.equal(wide[..., 6 * head_dim :], before[..., 6 * head_dim :])
    assert torch.equal(q[:, 0], old[:, 0, :, 0]), "position 0 is not rotated"
    assert not torch.equal(k[:, 1:, :, :dims], old[:, 1:, :, 1, :dims])


def test_a_backward_that_needs_the_old_values_fails(device: str) -> None:
    cos, sin = tables(4, 4, device)
    leaf = normal(1, 4, 1, 3, 16).float().to(device).requires_grad_()
    qkv = leaf * 1
    squared = qkv.square()  # saves qkv for its backward
    q, _, _ = split_rotated(qkv, cos, sin)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (squared.sum() + q.sum()).backward()


def test_without_gradients_nothing_is_overwritten(device: str) -> None:
    cos, sin = tables(4, 4, device)
    qkv = normal(1, 4, 1, 3, 16).float().to(device)
    before = qkv.clone()
    with torch.no_grad():
        q, _, _ = split_rotated(qkv, cos, sin)
    assert torch.equal(qkv, before) and not torch.equal(q, before[:, :, :, 0])


@DTYPES
def test_attention_rotates_the_same_way(dtype: torch.dtype, device: str) -> None:
    from pythia_core.kernels.attention import attention_reference

    cos, sin = tables(33, 16, device)

    def kernel(qkv: Tensor) -> Tensor:
        return kernels.attention(qkv.clone(), cos, sin)

    def reference(qkv: Tensor) -> Tensor:
        return attention_reference(qkv, *(t.to(qkv) for t in (cos, sin)))

    check(kernel, reference, [normal(2, 33, 2, 3, 64).to(device, dtype)])


def test_unsupported_inputs_are_refused(device: str) -> None:
    cos, sin = tables(2, 4, device)
    with pytest.raises(ConfigError, match="head_dim is 512, but the kernel takes at most 256"):
        split_rotated(torch.zeros(1, 2, 1, 3, 512, device=device), cos, sin)
    with pytest.raises(ConfigError, match="4 rotary lanes, but a head has only 2"):
        split_rotated(torch.zeros(1, 2, 1, 3, 2, device=device), cos, sin)
    with pytest.raises(ConfigError, match="qkv is float64"):
        split_rotated(torch.zeros(1, 2, 1, 3, 8, device=device).double(), cos, sin)


def test_the_operations_pass_opcheck(device: str) -> None:
    cos, sin = tables(3, 4, device)
    qkv = normal(1, 3, 2, 3, 16).float().to(device)
    torch.library.opcheck(torch.ops.pythia.rotate_.default, (qkv, cos, sin, False))
    packed = torch.ops.pythia.pack_rotated_back.default
    torch.library.opcheck(packed, (*qkv.unbind(3), cos, sin))


def test_torch_compile_needs_no_graph_break(device: str) -> None:
    cos, sin = tables(6, 4, device)
    leaf = normal(2, 6, 2, 3, 16).float().to(device)

    def attended(qkv: Tensor) -> Tensor:
        return kernels.attention(2 * qkv, cos, sin)

    def gradient(function) -> tuple[Tensor, ...]:
        qkv = leaf.clone().requires_grad_()
        out = function(qkv)
        return out, *torch.autograd.grad(out.square().sum(), qkv)

    compiled = torch.compile(attended, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(gradient(compiled), gradient(attended), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-6)
