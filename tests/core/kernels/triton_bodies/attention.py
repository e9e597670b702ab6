"""Causal flash attention on strided views of the packed QKV, and its packed gradient."""

from __future__ import annotations

import importlib

import pytest
import torch
from kernel_checks import DTYPES, check, normal
from torch import Tensor

from pythia_core import kernels
from pythia_core.errors import ConfigError
from pythia_core.kernels import attention_backends
from pythia_core.kernels.attention import attention_reference, attention_with_backend
from pythia_core.kernels.attention_backends import backend_attention, packed_backward

HEAD_DIMS = pytest.mark.parametrize("head_dim", [32, 64, 80, 128, 256])


def plain(*qkv: Tensor) -> Tensor:
    """The reference without a rotation."""
    packed = torch.stack(qkv, 3)
    one = torch.ones(packed.shape[1], 1, device=packed.device, dtype=packed.dtype)
    return attention_reference(packed, one, 0 * one).unflatten(2, qkv[0].shape[2:])


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return backend_attention(q, k, v, "triton")


@DTYPES
@HEAD_DIMS
def test_values_and_gradients(dtype: torch.dtype, head_dim: int, device: str) -> None:
    """Several tiles of queries and of keys, the last ones ragged."""
    shape = (1, 150 if dtype == torch.bfloat16 else 37, 1, 3, head_dim)

    def split(function):
        return lambda qkv: function(*qkv.unbind(3))

    check(split(ours), split(plain), [normal(*shape).to(device, dtype)])


@pytest.mark.parametrize(("seq", "heads"), [(2, 3), (63, 2), (129, 1)])
def test_lengths_batches_and_heads(seq: int, heads: int, device: str) -> None:
    qkv = normal(2, seq, heads, 3, 32).to(device, torch.float16)
    check(ours, plain, list(qkv.unbind(3)))


@pytest.mark.parametrize("head_dim", [8, 20, 96])
def test_heads_of_small_models(head_dim: int, device: str) -> None:
    check(ours, plain, list(normal(1, 21, 2, 3, head_dim).float().to(device).unbind(3)))


def test_large_scores_stay_finite(device: str) -> None:
    qkv = 100 * normal(1, 40, 1, 3, 32).to(device, torch.float16)
    q, k, v = (x.clone().requires_grad_() for x in qkv.unbind(3))
    out = ours(q, k, v)
    exact = plain(*(x.detach().double() for x in (q, k, v)))
    torch.testing.assert_close(out.double(), exact, rtol=2e-3, atol=0.2)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_future_tokens_do_not_change_the_past(device: str) -> None:
    qkv = normal(1, 140, 1, 3, 32).float().to(device)
    before = ours(*qkv.unbind(3))
    qkv[:, 131:] = 7
    assert torch.equal(ours(*qkv.unbind(3))[:, :131], before[:, :131])


def test_any_strides(device: str) -> None:
    """Views of a wider buffer give the same bits as separate tensors."""
    wide = normal(2, 17, 2 * 3 * 16 + 48).float().to(device)
    views = wide[..., :96].unflatten(-1, (2, 3, 16)).unbind(3)
    apart = [x.contiguous() for x in views]
    mixed = [apart[0], apart[1].transpose(1, 2).contiguous().transpose(1, 2), apart[2]]
    assert torch.equal(ours(*views), ours(*apart)) and torch.equal(ours(*mixed), ours(*apart))


def test_the_gradient_is_one_packed_buffer(device: str) -> None:
    qkv = normal(1, 9, 2, 3, 16).float().to(device).requires_grad_()
    q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(3))
    out, lse = attention_backends.packed_forward(q, k, v)
    dqkv = packed_backward(torch.ones_like(out), q, k, v, out, lse)
    assert dqkv.shape == qkv.shape and dqkv.is_contiguous()
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(torch.equal(a, b) for a, b in zip(grads, dqkv.unbind(3), strict=True))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k).detach() / 4
    future = torch.ones(9, 9, dtype=torch.bool, device=device).triu(1)
    exact = scores.masked_fill(future, float("-inf")).logsumexp(-1) / torch.tensor(2.0).log()
    torch.testing.assert_close(lse, exact.to(lse))


@DTYPES
def test_rotated_in_place(dtype: torch.dtype, device: str) -> None:
    """All of `attention`: rotation, attention, and the packed gradient rotated back."""
    cos, sin = kernels.rotary_tables(33, 16, 10_000.0, torch.device(device))

    def kernel(qkv: Tensor) -> Tensor:
        return attention_with_backend(qkv.clone(), cos, sin, "triton")

    def reference(qkv: Tensor) -> Tensor:
        return attention_reference(qkv, *(t.to(qkv) for t in (cos, sin)))

    check(kernel, reference, [normal(2, 33, 2, 3, 64).to(device, dtype)])


def test_the_table_selects_the_backend(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cos, sin = kernels.rotary_tables(9, 4, 10_000.0, torch.device(device))
    qkv = normal(1, 9, 2, 3, 16).to(device, torch.bfloat16)
    called = []

    def spy(*arguments):
        called.append("triton")
        return attention_backends.packed_forward(*arguments)

    module = importlib.import_module(
        "pythia_core.kernels.attention"
    )  # the function of that name shadows it
    monkeypatch.setattr(module, "packed_forward", spy)
    for table, expected in ({}, []), ({16: "triton"}, ["triton"]), ({32: "triton"}, ["triton"]):
        monkeypatch.setattr(attention_backends, "FASTEST", table)
        with torch.no_grad():
            kernels.attention(qkv, cos, sin)
            kernels.attention(qkv.float(), cos, sin)  # in fp32 the table does not apply
        assert called == expected


def test_unsupported_inputs_are_refused(device: str) -> None:
    q = torch.zeros(1, 2, 1, 264, device=device)
    with pytest.raises(ConfigError, match="head_dim is 264, but the kernel takes at most 256"):
        ours(q, q, q)
    q = torch.zeros(1, 2, 1, 16, device=device, dtype=torch.float64)
    with pytest.raises(ConfigError, match="q is float64, but the kernel takes only float32"):
        ours(q, q, q)
    long = torch.zeros(1, 1, 1, 256, device=device).expand(1, 2**22, 1, 256)
    with pytest.raises(ConfigError, match="4194304 tokens and 1 heads is too long"):
        ours(long, long, long)


def test_the_operations_pass_opcheck(device: str) -> None:
    q, k, v = (x.clone().requires_grad_() for x in normal(1, 5, 2, 3, 16).float().unbind(3))
    arguments = (q.to(device), k.to(device), v.to(device))
    torch.library.opcheck(torch.ops.pythia.causal_attention.default, arguments)


def test_torch_compile_needs_no_graph_break(device: str) -> None:
    cos, sin = kernels.rotary_tables(6, 4, 10_000.0, torch.device(device))
    leaf = normal(2, 6, 2, 3, 16).float().to(device)

    def attended(qkv: Tensor) -> Tensor:
        return attention_with_backend(2 * qkv, cos, sin, "triton")

    def gradient(function) -> tuple[Tensor, ...]:
        qkv = leaf.clone().requires_grad_()
        out = function(qkv)
        return out, *torch.autograd.grad(out.square().sum(), qkv)

    compiled = torch.compile(attended, backend="aot_eager", fullgraph=True)
    for one, eager in zip(gradient(compiled), gradient(attended), strict=True):
        torch.testing.assert_close(one, eager, rtol=1e-6, atol=1e-6)
