"""Which operations take a Triton kernel, and what they are without one."""

from __future__ import annotations

import importlib
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pythia_core import kernels
from pythia_core.errors import ConfigError
from pythia_core.kernels import gpu
from pythia_core.kernels.gelu import bias_gelu_reference
from pythia_core.kernels.layer_norm import layer_norm_pair_reference
from pythia_core.kernels.rotary import split_rotated_reference

attention = importlib.import_module("pythia_core.kernels.attention")  # hidden by its function
CARD = SimpleNamespace(device=torch.device("cuda"))
"""All that `use_triton` looks at."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHIA_TRITON", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu, "_said", set())
    monkeypatch.setattr(gpu, "TRITON_FOUND", True)


def test_kernels_are_for_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.use_triton(CARD)
    assert not gpu.use_triton(torch.zeros(1))
    assert not gpu.use_triton(torch.zeros(1, device="meta"))
    monkeypatch.setenv("PYTHIA_TRITON", "0")
    assert not gpu.use_triton(CARD)


def test_the_interpreter_takes_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu.use_triton(torch.zeros(1))
    monkeypatch.setattr(gpu, "TRITON_FOUND", False)
    assert not gpu.use_triton(torch.zeros(1))


def test_a_card_without_triton_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu, "TRITON_FOUND", False)
    with caplog.at_level(logging.WARNING):
        assert not gpu.use_triton(CARD) and not gpu.use_triton(CARD)
        assert not gpu.use_triton(torch.zeros(1))
    assert [r.message for r in caplog.records] == [
        "Triton is not installed: the slower torch operations are used"
    ]


def test_refusals_name_everything_at_once() -> None:
    gpu.check("op", {"x": torch.bfloat16}, ("",))
    with pytest.raises(ConfigError, match=r"x is int32, the kernel takes float32.*; too wide\."):
        gpu.check("op", {"x": torch.int32}, ("", "too wide"))


@pytest.mark.parametrize("branches", [0, 2])
def test_the_pair_of_norms_is_two_norms(branches: int) -> None:
    x, added = normal(5, 24), [normal(5, 24, seed=1 + i) for i in range(branches)]
    norms = [normal(24, seed=3 + i) for i in range(4)]
    ours = kernels.layer_norm_pair(x, added, norms, 1e-5, torch.float32)
    plain = layer_norm_pair_reference(x, added, norms, 1e-5, torch.float32)
    for o, p in zip(ours, plain, strict=True):
        torch.testing.assert_close(o, p)
    z = ours[0]
    assert torch.equal(ours[2], kernels.layer_norm(z, norms[2], norms[3], 1e-5, torch.float32))


@pytest.mark.parametrize("form", ["tanh", "erf"])
def test_bias_gelu_adds_the_bias(form: str) -> None:
    x, bias = normal(5, 24), normal(24, seed=1)
    torch.testing.assert_close(kernels.bias_gelu(x, bias, form), bias_gelu_reference(x, bias, form))


def test_splitting_leaves_the_input_alone_without_a_kernel() -> None:
    qkv = normal(2, 6, 3, 3, 16)
    before, (cos, sin) = qkv.clone(), kernels.rotary_tables(6, 4, 10_000.0)
    ours, plain = kernels.split_rotated(qkv, cos, sin), split_rotated_reference(qkv, cos, sin)
    assert all(torch.equal(o, p) for o, p in zip(ours, plain, strict=True))
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("library", ["torch", "flash", "math"])
def test_libraries_agree(library: str) -> None:
    qkv = normal(2, 7, 3, 3, 16)
    one, zero = torch.ones(7, 2), torch.zeros(7, 2)
    exact = attention.attention_reference(qkv, one, zero)
    out = attention.library_attention(*qkv.unbind(3), library).flatten(2)
    torch.testing.assert_close(out, exact)


def test_unknown_libraries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    q = normal(1, 2, 1, 8)
    with pytest.raises(ConfigError, match=r"unknown attention library 'flsh'.*'flash'"):
        attention.library_attention(q, q, q, "flsh")
    monkeypatch.setattr(attention, "FLASH_ATTN_FOUND", False)
    with pytest.raises(ConfigError, match="flash_attn is not installed"):
        attention.library_attention(q, q, q, "flash_attn")


def test_only_known_libraries_are_in_the_table() -> None:
    assert set(attention.FASTEST.values()) <= set(attention.LIBRARIES)
